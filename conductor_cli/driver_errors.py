"""What the errors of a driver mean: the one place where they become Conductor's own.

The driver may be psycopg, or that of a connection which a caller lends: psycopg2, asyncpg, any of
these below SQLAlchemy or Django. Postgres' five-character code decides. An attempt to connect has
none, so there the words of the client library decide.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from conductor_cli import errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

LENT: Final = "the database of connection="

_DRIVERS: Final = ("psycopg", "psycopg_pool", "psycopg2", "asyncpg", "sqlalchemy", "django")
_DEPTH: Final = 5  # errors inside errors: Django's around psycopg's, SQLAlchemy's around asyncpg's

_Meaning = tuple[type[errors.ConductorError], str]

_BUSY: Final = errors.DatabaseBusy
_AWAY: Final = errors.DatabaseUnavailable
_STOPPING: Final[_Meaning] = (
    _AWAY,
    "{Where} ended the connection: {reason}. The server is being stopped or restarted, or an "
    "administrator ended the session. Call again when it is back.",
)

# The longest code that fits decides. {where}: the database; {Where}: the same at the beginning of a
# sentence; {reason}: what Postgres says.
_MEANINGS: Final[dict[str, _Meaning]] = {
    "08": (
        _AWAY,
        "The connection to {where} was lost: {reason}. Whether the call was carried out is "
        "unknown: look before you repeat it.",
    ),
    "22": (errors.PayloadError, "{Where} cannot store a value of this call: {reason}."),
    "25006": (
        errors.DatabaseReadOnly,
        "{Where} is read-only: {reason}. It is a standby, or default_transaction_read_only is on. "
        "Connect to the primary: target_session_attrs=read-write in the URL finds it among "
        "several hosts.",
    ),
    "25P02": (
        errors.ConductorError,
        "The transaction on {where} has failed before this call, so that nothing more can be done "
        "in it. Roll it back, or catch the first error inside a savepoint.",
    ),
    "28": (
        errors.CredentialsRefused,
        "{Where} refused the connection: {reason}. Check the user and the password in "
        "[database] url, and pg_hba.conf on the server.",
    ),
    "3D000": (
        errors.CredentialsRefused,
        "{Where} does not exist: {reason}. Create it with `createdb`, or mend the database's name "
        "in [database] url.",
    ),
    "40001": (
        _BUSY,
        "Another transaction on {where} changed the same rows at the same time: {reason}. Nothing "
        "was changed: call again.",
    ),
    "40P01": (
        _BUSY,
        "This call and another transaction on {where} waited for each other's locks, and Postgres "
        "ended this one: a deadlock. Nothing was changed: call again.",
    ),
    "42501": (
        errors.PermissionRefused,
        "The role of this connection lacks a right on {where}: {reason}. `conductor migrate --sql` "
        "prints the grants for an owner, a worker, a producer and a viewer.",
    ),
    "53": (
        _AWAY,
        "{Where} has run out of something it needs: {reason}. Call again when the server has room.",
    ),
    "53100": (
        _AWAY,
        "The disk of {where} is full: {reason}. Nothing was changed: make room, and call again.",
    ),
    "53200": (
        _AWAY,
        "{Where} has run out of memory: {reason}. Nothing was changed: call again later.",
    ),
    "53300": (
        _AWAY,
        "{Where} has no connection left: {reason}. Close some, raise max_connections or the limit "
        "of the role or database, or give programs smaller pools.",
    ),
    "54": (errors.PayloadError, "A value of this call is too large for {where}: {reason}."),
    "55P03": (
        _BUSY,
        "A lock on {where} was waited for in vain: {reason}. Nothing was changed: call again when "
        "the other transaction has ended.",
    ),
    "57014": (
        _BUSY,
        "A statement on {where} was ended before it was done: {reason}. Nothing was changed: "
        "call again when the server is less busy, or the transaction that holds its tables has "
        "ended.",
    ),
    "57P": _STOPPING,
    "57P03": (
        _AWAY,
        "{Where} takes no connections yet: {reason}. The server is starting or stopping. Call "
        "again in a moment.",
    ),
    "58": (
        _AWAY,
        "The server of {where} cannot read or write its files: {reason}. Its log and its disk "
        "say more.",
    ),
    "XX": (
        errors.ConductorError,
        "{Where} has failed within itself: {reason}. The server's log says more.",
    ),
}

_SCHEMA: Final = ("3F000", "42P01", "42883", "42703", "42704", "42804", "42P10", "0A000")

_MISSING: Final[_Meaning] = (
    errors.SchemaMissing,
    "{Where} has no Conductor schema, or not the one that this program needs: {reason}. Run "
    "`conductor migrate` on it.",
)

_OTHER: Final[_Meaning] = (errors.ConductorError, "{Where} refused a statement: {reason}.")

# What the client library, or a server that answers before it lets somebody in, says: the first
# that occurs decides.
_WORDS: Final[Sequence[tuple[str, _Meaning]]] = (
    (
        r"no more connections allowed|too many (clients|connections)|connection slots are"
        r"|query_wait_timeout|TooManyConnections",
        _MEANINGS["53300"],
    ),
    (r"server login has been failing|server_login_retry", _MEANINGS["57P03"]),
    (
        r"the database system is|is not (yet )?accepting connections|pooler is shut(ting)? down",
        _MEANINGS["57P03"],
    ),
    (r"terminating connection due to", _STOPPING),
    (r'database "[^"]*" does not exist|no such database', _MEANINGS["3D000"]),
    (
        r"authentication failed|no password supplied|no pg_hba\.conf entry|no such user"
        r'|role "[^"]*" does not exist|permission denied for database|not permitted to log in',
        _MEANINGS["28"],
    ),
    (
        r"session is (not )?read-only|server is (not )?in hot standby|not in a read-only",
        (
            errors.DatabaseReadOnly,
            "No server of {where} is what target_session_attrs in the URL asks for: {reason}. "
            "Name the primary among its hosts, or ask for another kind of session.",
        ),
    ),
    (
        r"definition of service|service file",
        (
            _AWAY,
            "The address of the database names a service that was not found: {reason}. Services "
            "are defined in ~/.pg_service.conf, or in the file that PGSERVICEFILE names.",
        ),
    ),
    (
        r"root certificate file|sslrootcert",
        (
            _AWAY,
            "{Where} cannot be reached, since its certificate cannot be checked: {reason}. Let "
            "sslrootcert in the URL name the file of the authority, or be `system`.",
        ),
    ),
    (
        r"does not support SSL|SSL was required|no encryption|sslmode value",
        (
            _AWAY,
            "{Where} and this program do not agree on encryption: {reason}. Look at sslmode in "
            "the URL (disable, allow, prefer, require, verify-ca, verify-full), and at ssl on "
            "the server.",
        ),
    ),
    (
        r"private key file|certificate file",
        (
            _AWAY,
            "A certificate or key of this client for {where} cannot be used: {reason}. Look at "
            "sslcert and sslkey in the URL.",
        ),
    ),
    (
        r"response to SSL negotiation|expected authentication request|unsupported frontend"
        r"|received invalid response",
        (
            _AWAY,
            "What answers at {where} is not Postgres: {reason}. Are host and port in "
            "[database] url right?",
        ),
    ),
    (
        r"certificate|SSL error|SSL SYSCALL",
        (
            _AWAY,
            "No safe connection to {where} came about: {reason}. With sslmode=verify-full the "
            "host in the URL must be the one in the server's certificate.",
        ),
    ),
    (
        r"Servname not supported",
        (
            _AWAY,
            "The port in the address of {where} is no number: {reason}. A URL reads "
            "postgresql://user:password@host:port/database, and special characters of the "
            "password are written as %40 for @, %2F for /, %3A for :.",
        ),
    ),
    (
        r"resolve host|translate host name|name or service not known|nodename nor servname"
        r"|parse network address",
        (
            _AWAY,
            "The host of {where} is not known: {reason}. Check its spelling in [database] url. "
            "Special characters of a password have to be written as %40 for @, %2F for /.",
        ),
    ),
    (
        r"invalid port number|for connection option|invalid \S+ value",
        (
            _AWAY,
            "The address of {where} has a setting that cannot be: {reason}. Mend it in "
            "[database] url.",
        ),
    ),
    (
        r"on socket .* failed: No such file",
        (
            _AWAY,
            "{Where} cannot be reached: {reason}. No server of this machine listens at that "
            "socket. Name host and port in [database] url, or start Postgres.",
        ),
    ),
    (
        r"timeout expired|timed out|connection timeout|Network is unreachable|No route to host",
        (
            _AWAY,
            "{Where} cannot be reached: {reason}. Nothing answered in time. Are host and port in "
            "[database] url right, and does a firewall let this machine through?",
        ),
    ),
    (r"nothing has been heard from the server", _MEANINGS["08"]),
    (r"closed the file of the connection", _MEANINGS["08"]),
    (
        r"connection (is|was) closed|connection already closed|connection is lost",
        (
            _AWAY,
            "The connection to {where} is closed: {reason}. Open another, and begin the "
            "transaction anew.",
        ),
    ),
    (
        r"server closed the connection|connection reset|has closed the connection|EOF detected"
        r"|closed in the middle|Broken pipe|connection was lost",
        _MEANINGS["08"],
    ),
    (
        r"Connection refused|could not connect|connection (is bad|failed)|Connect call failed",
        (
            _AWAY,
            "{Where} cannot be reached: {reason}. Is it running, and are host and port in "
            "[database] url right?",
        ),
    ),
    (r"pipeline|another command is already in progress|another operation", (
        errors.ConductorError,
        "{Where} is busy with something else of yours: {reason}. End the pipeline, or the query "
        "that is under way on the connection, before this call.",
    )),
)  # fmt: skip


class Telling:
    """Around what talks to Postgres: the errors of drivers come out as Conductor's own."""

    __slots__ = ("_where",)

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        """Nothing is to be done before."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None and is_of_driver(error):
            raise told(error, self._where) from error


def is_of_driver(error: BaseException | None) -> bool:
    """Whether a driver has raised it, or what stands around one."""
    return isinstance(error, Exception) and any(
        kind.__module__.partition(".")[0] in _DRIVERS for kind in type(error).__mro__
    )


def code(error: BaseException) -> str | None:
    """Postgres' code, whatever the driver calls it; None where Postgres has not spoken."""
    for each in _chain(error):
        for attribute in ("sqlstate", "pgcode"):
            found = getattr(each, attribute, None)
            if isinstance(found, str):
                return found
    return None


def is_of_schema(error: BaseException) -> bool:
    """Whether a statement of ours was not understood: the schema is another, or not there."""
    return (code(error) or "").startswith(_SCHEMA)


def told(error: BaseException, where: str, *secrets: str) -> errors.ConductorError:
    """The error a user should read in place of the driver's.

    ``where``: the database, as ``place`` writes it. ``secrets`` do not appear.
    """
    text = _words(error)
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    kind, sentence = _meaning(code(error), text)
    return kind(
        sentence.format(where=where, Where=where[:1].upper() + where[1:], reason=_reason(text))
    )


def of_url(error: BaseException, url: str) -> errors.ConductorError:
    """The same for the database at ``url``, whose password does not appear."""
    return told(error, place(url), *_secrets(url))


def place(url: str) -> str:
    """The database of a URL, in a sentence."""
    return f"Postgres at {describe(url)}"


def describe(url: str) -> str:
    """Host, port, database and user of a URL, for people; never the password."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return "(unreadable URL)"
    if "service" in parts and "host" not in parts:
        return f"service {parts['service']}"
    host = str(parts.get("host", "localhost"))
    if "@" in host:  # half a password, whose own @ was not written as %40
        host = f"***@{host.rpartition('@')[2]}"
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    port = parts.get("port", "5432")
    return f"{host}:{port}/{parts.get('dbname', '')} (user {parts.get('user', 'default')})"


def _secrets(url: str) -> Iterator[str]:
    try:
        parts: dict[str, Any] = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return
    yield str(parts.get("password") or "")
    yield str(parts.get("sslpassword") or "")
    if "@" in (host := str(parts.get("host", ""))):
        yield host.rpartition("@")[0]


def _meaning(state: str | None, text: str) -> _Meaning:
    if state is not None:
        for length in (5, 3, 2):
            if (found := _MEANINGS.get(state[:length])) is not None:
                return found
        if state.startswith(_SCHEMA):
            return _MISSING
        return _OTHER
    for words, meaning in _WORDS:
        if re.search(words, text, re.IGNORECASE):
            return meaning
    if "FATAL:" in text:  # in a language of its own
        return (_AWAY, "{Where} answered, and refused the connection: {reason}.")
    return (_AWAY, "The connection to {where} failed: {reason}.")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(_DEPTH):
        if error is None:
            return
        yield error
        error = getattr(error, "orig", None) or error.__cause__


def _words(error: BaseException) -> str:
    """What the innermost error says: what stands around it adds the statement, and a link."""
    *_, innermost = _chain(error)
    return str(innermost).strip() or str(error).strip() or type(error).__name__


def _reason(text: str) -> str:
    """The line that says why: Postgres's own verdict if there is one, else the first."""
    lines = text.splitlines() or ["no reason given"]
    verdicts = [line.partition("FATAL:")[2] for line in lines if "FATAL:" in line]
    line = (verdicts or lines)[0].strip()
    for opening in ("connection failed: ", "connection is bad: "):
        line = line.removeprefix(opening)
    return " ".join(line.removesuffix(".").split())
