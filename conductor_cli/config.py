"""What an installation may set: defaults < ``conductor.toml`` < environment < flags.

``load`` reads all four and either returns a frozen ``Config`` whose every value has been checked,
or raises one ``ConfigError`` that lists every mistake, each on a line of its own::

    conductor.toml:7: worker.concurrency = 'ten': expected an integer from 1 to 1000
    environment CONDUCTOR_SERVER_PORT = '99999': expected an integer from 0 to 65535

Each section is a dataclass below; a field's ``_Kind`` says what it takes, and from these follow the
checks, the names of the variables (``CONDUCTOR_<SECTION>_<KEY>``) and what counts as unknown.
Durations are seconds. Passwords and tokens appear in no ``repr`` and in no message.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
import re
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import tomli_w

from conductor_cli import timing
from conductor_cli.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

DEFAULT_FILE: Final = "conductor.toml"
FOREVER: Final = math.inf
QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9_.:-]{1,200}")


# ------------------------------------------------------------------ secrets


def redacted(url: str) -> str:
    """``url``, or a key=value string, without its password. Rather hides too much than too little.

    From the first colon after the scheme to the last ``@`` all is hidden, because passwords with
    an unescaped ``@`` or ``/`` are common, and where no host follows, what cannot be a port.
    """
    if not re.match(r"\s*[\w+.-]+://", url):
        return _DSN_SECRET.sub(r"\1***", url)
    url = re.sub(r"(?s)^(\s*[\w+.-]+://[^:]*):.*@", r"\1:***@", url)
    url = re.sub(r"(?s)^(\s*[\w+.-]+://[^:/?@\[]*):(?!\d*(?:[/?,]|$)|\*\*\*@).*", r"\1:***", url)
    return re.sub(r"(?i)([?&]\w*(?:password|secret)\w*=)[^&]*", r"\1***", url)


_DSN_SECRET: Final = re.compile(
    r"""(?isx) (\w*(?:password|secret)\w*\s*=\s*)
    (?: '(?:\\.|[^'\\])*'? | (?:(?!\s+\w+\s*=).)* )"""
)


# ------------------------------------------------------------------ kinds of values


@dataclass(frozen=True)
class _Kind(Generic[T_co]):
    """What a key takes. ``read`` returns the value or raises ValueError; ``hide`` shows secrets."""

    expected: str
    read: Callable[[object], T_co]
    from_text: Callable[[str], object] = str
    hide: Callable[[object], str] | None = None

    def shown(self, value: object) -> str:
        return (self.hide or _shown)(value)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "{...}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"[:100]
    return repr(redacted(value))[:100] if isinstance(value, str) else str(value)[:100]


def _integer(low: int, high: int) -> _Kind[int]:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    return _Kind(f"an integer from {low} to {high}", read, int)


def _text(expected: str, pattern: str, hide: Callable[[object], str] | None = None) -> _Kind[str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError
        return value

    return _Kind(expected, read, hide=hide)


def _choice(*words: str) -> _Kind[str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or value.lower() not in words:
            raise ValueError
        return value.lower()

    return _Kind(f"one of {', '.join(words)}", read)


def _above_zero(value: object) -> float:
    if not (number := timing.seconds(value, "value")):
        raise ValueError
    return number


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _boolean_text(text: str) -> object:
    words = {"true": True, "1": True, "yes": True, "on": True}
    words |= {"false": False, "0": False, "no": False, "off": False}
    return words.get(text.strip().lower(), text)


def _retention(value: object) -> float:
    if value is False:
        return 0.0
    if value == "forever" or (isinstance(value, float) and value == math.inf):
        return FOREVER
    return timing.seconds(value, "retention")


def _retention_text(text: str) -> object:
    words: dict[str, object] = {"false": False, "forever": FOREVER}
    return words[text.lower()] if text.lower() in words else float(text)


def _time_zone(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return timing.zone(value).key


_NAME: Final = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"


def _modules(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError
    if not all(isinstance(name, str) and re.fullmatch(rf"{_NAME}(\.\*)?", name) for name in value):
        raise ValueError
    return tuple(value)


def _comma_separated(text: str) -> object:
    return [part.strip() for part in text.split(",") if part.strip()]


def _url(value: object) -> str:
    """Normalised to ``postgresql://``; "embedded" and libpq's key=value strings as they are."""
    text = value.strip() if isinstance(value, str) else ""
    scheme = re.match(r"(?i)(?:postgres|postgresql)(?:\+[\w.-]+)?://", text)
    if scheme and text.isprintable():
        return "postgresql://" + text[scheme.end() :]
    if text == "embedded" or (re.match(r"\w+\s*=", text) and text.isprintable()):
        return text
    raise ValueError


def _shown_url(value: object) -> str:
    if isinstance(value, str) and re.match(r"\s*(?:[\w+.-]+://|\w+\s*=)", value):
        return repr(redacted(value))
    return "***"  # no telling what is the password in it


_ABOVE_ZERO: Final = _Kind("seconds, more than 0", _above_zero, float)
_SECONDS: Final = _Kind(
    "seconds, 0 or more", lambda value: timing.seconds(value, "interval"), float
)
_SWITCH: Final = _Kind("true or false", _boolean, _boolean_text)
_KEEP: Final = _Kind(
    'seconds, 0 or more (false: delete at once, "forever": keep)', _retention, _retention_text
)
_URL: Final = _Kind(
    'postgresql://user@host/database, "host=... dbname=..." or "embedded"', _url, hide=_shown_url
)
_TOKEN: Final = _text("printable ASCII without spaces", r"[!-~]+", lambda _: "***")


# ------------------------------------------------------------------ the sections


def _key(default: T, kind: _Kind[T]) -> T:
    return field(default=default, metadata={"kind": kind}, repr=kind.hide is None)


def _kinds(section: type[_Section]) -> dict[str, _Kind[Any]]:
    return {each.name: each.metadata["kind"] for each in fields(section) if each.metadata}


@dataclass(frozen=True)
class _Section:
    """Checks its values however it is made: ConfigError names the key, value and expectation."""

    def __post_init__(self) -> None:
        problems = []
        for each in fields(self):
            value = getattr(self, each.name)
            if not each.metadata or value is each.default:
                continue
            kind: _Kind[object] = each.metadata["kind"]
            try:
                object.__setattr__(self, each.name, kind.read(value))
            except ValueError:
                where = f"{type(self).__name__}.{each.name}"
                problems.append(f"{where} = {kind.shown(value)}: expected {kind.expected}")
        if problems:
            raise ConfigError(*problems)


@dataclass(frozen=True)
class Database(_Section):
    """``url`` is empty when none was given nor required; ``pooler`` None finds out by itself."""

    url: str = _key("", _URL)
    pooler: bool | None = _key(None, _SWITCH)

    def __repr__(self) -> str:
        return f"Database(url={redacted(self.url)!r}, pooler={self.pooler})"


@dataclass(frozen=True)
class Server(_Section):
    """Where the daemon listens; without ``dashboard`` only health and metrics are served."""

    host: str = _key("127.0.0.1", _text("a host name or address", r"[^\s/]+"))
    port: int = _key(8765, _integer(0, 65535))
    token: str | None = _key(None, _TOKEN)
    dashboard: bool = _key(True, _SWITCH)


@dataclass(frozen=True)
class Tasks(_Section):
    """``setup`` is "module:function"; ``max_payload`` is bytes of JSON."""

    modules: tuple[str, ...] = _key(
        (),
        _Kind('a list of modules such as ["myapp.tasks", "other.*"]', _modules, _comma_separated),
    )
    setup: str | None = _key(None, _text('"module:function"', rf"{_NAME}:{_NAME}"))
    max_payload: int = _key(1_048_576, _integer(1, 255 * 1_048_576))  # more jsonb cannot hold


@dataclass(frozen=True)
class WorkerConfig(_Section):
    """One queue's worker; None adapts by itself."""

    concurrency: int = _key(10, _integer(1, 1000))
    poll_interval: float = _key(1.0, _ABOVE_ZERO)
    flush_interval: float | None = _key(None, _SECONDS)
    fetch_batch_size: int | None = _key(None, _integer(1, 10_000))


@dataclass(frozen=True)
class Worker(WorkerConfig):
    """Every queue's worker; ``queues`` has those with overrides, what they inherit included."""

    queues: Mapping[str, WorkerConfig] = field(default_factory=dict)

    def for_queue(self, name: str) -> WorkerConfig:
        """The worker of this queue."""
        inherited = {key: getattr(self, key) for key in _kinds(WorkerConfig)}
        return self.queues.get(name) or WorkerConfig(**inherited)


@dataclass(frozen=True)
class Coordinator(_Section):
    """``load`` sees to it that the timeout is at least two intervals."""

    heartbeat_interval: float = _key(5.0, _ABOVE_ZERO)
    heartbeat_timeout: float = _key(15.0, _ABOVE_ZERO)
    shutdown_timeout: float = _key(25.0, _ABOVE_ZERO)


@dataclass(frozen=True)
class Scheduler(_Section):
    """``timezone`` holds for schedules that name none."""

    timezone: str = _key("UTC", _Kind("a time zone such as Europe/Berlin", _time_zone))


@dataclass(frozen=True)
class Retention(_Section):
    """Seconds that a finished execution is kept: 0 deletes at once, FOREVER never."""

    completed: float = _key(604_800.0, _KEEP)
    failed: float = _key(2_592_000.0, _KEEP)


@dataclass(frozen=True)
class Log(_Section):
    """``auto`` is the console on a terminal and JSON otherwise."""

    level: str = _key("info", _choice("debug", "info", "warning", "error"))
    format: str = _key("auto", _choice("auto", "console", "json"))


_SECTIONS: Final[Mapping[str, type[_Section]]] = {
    "database": Database,
    "server": Server,
    "tasks": Tasks,
    "worker": Worker,
    "coordinator": Coordinator,
    "scheduler": Scheduler,
    "retention": Retention,
    "log": Log,
}
_KEYS: Final[Mapping[str, _Kind[Any]]] = {
    f"{section}.{key}": kind
    for section, cls in _SECTIONS.items()
    for key, kind in _kinds(cls).items()
}
_VARIABLES: Final = {f"CONDUCTOR_{path.replace('.', '_').upper()}": path for path in _KEYS}


@dataclass(frozen=True)
class Config:
    """All settings; ``path`` is the absolute path of the file they came from, if there was one."""

    database: Database = field(default_factory=Database)
    server: Server = field(default_factory=Server)
    tasks: Tasks = field(default_factory=Tasks)
    worker: Worker = field(default_factory=Worker)
    coordinator: Coordinator = field(default_factory=Coordinator)
    scheduler: Scheduler = field(default_factory=Scheduler)
    retention: Retention = field(default_factory=Retention)
    log: Log = field(default_factory=Log)
    path: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder of the file, else the current one: for ``sys.path`` and ``.conductor/``."""
        return self.path.parent if self.path else Path.cwd()


def to_toml(settings: Mapping[str, object]) -> str:
    """``settings`` (tables by section) as the text of a configuration file."""
    return tomli_w.dumps(settings)


def check_exposure(config: Config) -> None:
    """ConfigError if the dashboard could be reached from elsewhere without a token."""
    server = config.server
    if server.token is None and server.dashboard and not _is_loopback(server.host):
        raise ConfigError(
            f"server.host = {server.host!r}: whoever reaches it could run tasks; expected"
            " server.token to be set, or server.dashboard = false, or a loopback address"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# ------------------------------------------------------------------ loading


def load(
    path: Path | str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] = MappingProxyType({}),
    require_database: bool = True,
) -> Config:
    """The settings of ``path``, else ``$CONDUCTOR_CONFIG``, else ``./conductor.toml`` if it exists.

    ``environ`` is ``os.environ`` unless given; a variable that is set to nothing counts as unset.
    ``overrides`` are the flags, by key path ("server.port"); None stands for a flag not given.
    ``DATABASE_URL`` is used when nothing else names a database. ConfigError lists every mistake.
    """
    environ = {k: v for k, v in (os.environ if environ is None else environ).items() if v.strip()}
    settings = _Settings()
    file = _find(path, environ)
    if file is not None:
        settings.read_file(file)
    settings.read_environment(environ)
    settings.read_flags(overrides)
    settings.find_database(environ, required=require_database, file=file)
    return settings.config(file)


def _find(path: Path | str | None, environ: Mapping[str, str]) -> Path | None:
    named = path or environ.get("CONDUCTOR_CONFIG")
    if named:
        return Path(named)
    return Path(DEFAULT_FILE) if Path(DEFAULT_FILE).exists() else None


class _Settings:
    """Gathers values, the later ones on top, and every mistake on the way."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}  # by key path
        self._origins: dict[str, str] = {}  # of every key path that was set, rightly or not
        self._queues: dict[str, dict[str, Any]] = {}
        self._problems: list[str] = []
        self._wrong: set[str] = set()
        self._unread = False

    # Each source

    def read_file(self, file: Path) -> None:
        try:
            text = file.read_text("utf-8-sig")
            table = tomllib.loads(text)
        except OSError as problem:
            self._give_up(f"{file}: cannot be read: {problem.strerror}")
        except UnicodeDecodeError:
            self._give_up(f"{file}: expected UTF-8 text")
        except tomllib.TOMLDecodeError as problem:
            self._give_up(_syntax_error(file, text, str(problem)))
        else:
            self._read_table(table, _Places(file, text))

    def _give_up(self, problem: str) -> None:
        self._problems.append(problem)
        self._unread = True

    def _read_table(self, table: dict[str, object], places: _Places) -> None:
        for section, content in table.items():
            if section not in _SECTIONS:
                self._unknown(places.of(section), section, content, [*_SECTIONS, *_KEYS])
            elif not isinstance(content, dict):
                self._refuse(places.of(section), _shown(content), f"expected a table [{section}]")
            else:
                self._read_section(section, content, places)

    def _read_section(self, section: str, content: dict[str, object], places: _Places) -> None:
        for key, value in content.items():
            path = f"{section}.{key}"
            if path == "worker.queues":
                self._read_queues(value, places)
            elif path in _KEYS:
                self._set(path, value, places.of(section, key))
            else:
                known = [*_kinds(_SECTIONS[section]), *(["queues"] if section == "worker" else [])]
                self._unknown(places.of(section, key), key, value, known, _KEYS)

    def _read_queues(self, queues: object, places: _Places) -> None:
        label = places.of("worker", "queues")
        if not isinstance(queues, dict):
            self._refuse(label, _shown(queues), "expected tables [worker.queues.NAME]")
            return
        for name, content in queues.items():
            label = places.of("worker", "queues", name)
            if not QUEUE_NAME.fullmatch(name):
                self._refuse(label, _shown(content), f"expected a name like {QUEUE_NAME.pattern}")
            elif not isinstance(content, dict):
                self._refuse(label, _shown(content), f"expected a table [worker.queues.{name}]")
            else:
                self._read_queue(name, content, places)

    def _read_queue(self, name: str, content: dict[str, object], places: _Places) -> None:
        kinds = _kinds(WorkerConfig)
        for key, value in content.items():
            label = places.of("worker", "queues", name, key)
            if key not in kinds:
                self._unknown(label, key, value, kinds)
                continue
            try:
                self._queues.setdefault(name, {})[key] = kinds[key].read(value)
            except ValueError:
                self._refuse(label, kinds[key].shown(value), f"expected {kinds[key].expected}")

    def read_environment(self, environ: Mapping[str, str]) -> None:
        for name, text in environ.items():
            if name in _VARIABLES and not _is_from_kubernetes(name, text):
                self._set_text(_VARIABLES[name], text, f"environment {name}")
            elif _is_mistyped(name) and not _is_from_kubernetes(name, text):
                self._unknown(f"environment {name}", name, text, _VARIABLES)

    def read_flags(self, overrides: Mapping[str, object]) -> None:
        for path, value in overrides.items():
            if path not in _KEYS:
                self._unknown(f"flag {path}", path, value, _KEYS)
            elif value is not None:
                self._set(path, value, f"flag {path}")

    def find_database(
        self, environ: Mapping[str, str], *, required: bool, file: Path | None
    ) -> None:
        if "database.url" in self._origins or self._unread:
            return
        url = environ.get("DATABASE_URL")
        if url and (required or _fits(_URL, url)):  # it may be another program's, of another kind
            self._set_text("database.url", url, "environment DATABASE_URL")
        elif required:
            self._problems.append(
                f"{file or DEFAULT_FILE}: database.url is missing: set url under [database], or"
                " CONDUCTOR_DATABASE_URL in the environment, to postgresql://user@host/database;"
                ' or let "conductor init" write a file with an embedded Postgres'
            )

    # What became of it

    def config(self, file: Path | None) -> Config:
        self._check_heartbeat()
        if self._problems:
            raise ConfigError(*self._problems)
        sections: dict[str, Any] = {name: cls(**self._of(name)) for name, cls in _SECTIONS.items()}
        config = Config(**sections, path=file and file.absolute())
        default = config.worker.for_queue("")
        queues = {name: replace(default, **given) for name, given in self._queues.items()}
        return replace(config, worker=replace(config.worker, queues=queues))

    def _of(self, section: str) -> dict[str, Any]:
        start = f"{section}."
        return {
            path.removeprefix(start): value
            for path, value in self._values.items()
            if path.startswith(start)
        }

    def _check_heartbeat(self) -> None:
        paths = ("coordinator.heartbeat_timeout", "coordinator.heartbeat_interval")
        timeout = self._values.get(paths[0], Coordinator.heartbeat_timeout)
        interval = self._values.get(paths[1], Coordinator.heartbeat_interval)
        if self._wrong.isdisjoint(paths) and timeout < 2 * interval:
            label = self._origins.get(paths[0]) or f"{self._origins[paths[1]]}: {paths[0]}"
            wanted = f"at least twice coordinator.heartbeat_interval, which is {interval}"
            self._refuse(label, str(timeout), f"expected {wanted}")

    def _set_text(self, path: str, text: str, label: str) -> None:
        try:
            value = _KEYS[path].from_text(text)
        except ValueError:
            value = text  # which no kind that is not text takes
        self._set(path, value, label)

    def _set(self, path: str, value: object, label: str) -> None:
        kind = _KEYS[path]
        self._origins[path] = label
        try:
            self._values[path] = kind.read(value)
        except ValueError as problem:
            self._wrong.add(path)
            more = f" ({problem})" if "did you mean" in str(problem) else ""
            self._refuse(label, kind.shown(value), f"expected {kind.expected}{more}")

    def _unknown(
        self, label: str, key: str, value: object, known: Iterable[str], more: Iterable[str] = ()
    ) -> None:
        near = _nearest(key, known) or _nearest(key, more)
        # A string that nobody knows may be a misspelt secret.
        secret = isinstance(value, str) and (near is None or _SECRETIVE.search(f"{key} {near}"))
        shown = "***" if secret else _shown(value)
        hint = f"did you mean {near!r}?" if near else f"expected one of {', '.join(known)}"
        self._refuse(label, shown, f"unknown; {hint}")

    def _refuse(self, label: str, shown: str, problem: str) -> None:
        self._problems.append(f"{label} = {shown}: {problem}")


_SECRETIVE: Final = re.compile(r"(?i)pass|pw|secret|token|key|auth|cred|url|dsn|database")


def _fits(kind: _Kind[object], value: object) -> bool:
    try:
        kind.read(value)
    except ValueError:
        return False
    return True


def _nearest(word: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, known, n=1)), None)


def _is_mistyped(name: str) -> bool:
    """Whether this unknown variable was meant for us; others may call theirs CONDUCTOR_ too."""
    if name == "CONDUCTOR_CONFIG" or not name.startswith("CONDUCTOR_"):
        return False
    if name.startswith("CONDUCTOR_TEST_"):
        return False
    ours = any(name.startswith(f"CONDUCTOR_{section.upper()}_") for section in _SECTIONS)
    return ours or bool(difflib.get_close_matches(name, _VARIABLES, n=1, cutoff=0.9))


def _is_from_kubernetes(name: str, text: str) -> bool:
    """Kubernetes sets such variables for a service that is called conductor-server."""
    if re.search(r"_SERVICE_(HOST|PORT)(_|$)|_PORT_\d+_(TCP|UDP|SCTP)(_|$)", name):
        return True
    return name.endswith("_PORT") and re.match(r"(tcp|udp|sctp)://", text) is not None


# ------------------------------------------------------------------ lines of a TOML file

_WORD: Final = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_DOTTED: Final = re.compile(rf"\s*({_WORD}(?:[ \t]*\.[ \t]*{_WORD})*)")
_TOML_TOKEN: Final = re.compile(
    r'''(?sx) """(?:\\.|[^\\])*?"{3,5} | \'\'\'.*?'{3,5}
    | "(?:\\.|[^"\\\n])*" | '[^'\n]*' | \#[^\n]* | .'''
)


class _Places:
    """The lines of a file's keys, which tomllib does not tell."""

    def __init__(self, file: Path, text: str) -> None:
        self._file = file
        self._lines = _lines(text)

    def of(self, *path: str) -> str:
        """``FILE:LINE: key.path``; of a key in an inline table, the line where the table begins."""
        known = (self._lines.get(path[:n]) for n in range(len(path), 0, -1))
        line = next((each for each in known if each), 1)
        words = (word if re.fullmatch(r"[\w-]+", word) else repr(word) for word in path)
        return f"{self._file}:{line}: {'.'.join(words)}"


def _lines(text: str) -> dict[tuple[str, ...], int]:
    lines: dict[tuple[str, ...], int] = {}
    section: tuple[str, ...] = ()
    for line, statement in _statements(text):
        if found := _DOTTED.match(statement.lstrip("[")):
            words = tuple(map(_unquoted, re.findall(_WORD, found[1])))
            path = words if statement.startswith("[") else (*section, *words)
            section = words if statement.startswith("[") else section
            for n in range(1, len(path) + 1):
                lines.setdefault(path[:n], line)
    return lines


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Each header or assignment, with the line on which it begins."""
    line, begun, depth, start = 1, 1, 0, 0
    for token in _TOML_TOKEN.finditer(text):
        depth += (token[0] in "[{") - (token[0] in "]}")
        line += token[0].count("\n")
        if token[0] == "\n" and depth == 0:
            yield begun, text[start : token.start()].strip()
            begun, start = line, token.end()
    yield begun, text[start:].strip()


def _unquoted(word: str) -> str:
    return str(tomllib.loads(f"word = {word}")["word"]) if word[0] in "\"'" else word


def _syntax_error(file: Path, text: str, problem: str) -> str:
    found = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", problem)
    line = int(found[1]) if found and found[1] else text.rstrip().count("\n") + 1
    column = f", at column {found[2]}" if found and found[2] else ""
    message = problem[: found.start()] if found else problem
    return f"{file}:{line}: not valid TOML{column}: {message}"
