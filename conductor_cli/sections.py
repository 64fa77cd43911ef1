"""What an installation may set: frozen sections whose every value has been checked.

Each section is a dataclass below; a field's ``Kind`` says what it takes, and from these follow the
checks, the names of the variables (``CONDUCTOR_<SECTION>_<KEY>``) and what counts as unknown.
Durations are seconds. Passwords and tokens appear in no ``repr`` and in no message. Other rooms
take all of this from ``config``, which reads the settings.
"""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from conductor_cli import timing
from conductor_cli.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

FOREVER: Final = math.inf


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
class Kind(Generic[T_co]):
    """What a key takes. ``read`` returns the value or raises ValueError; ``hide`` shows secrets."""

    expected: str
    read: Callable[[object], T_co]
    from_text: Callable[[str], object] = str
    hide: Callable[[object], str] | None = None

    def shown(self, value: object) -> str:
        return (self.hide or as_shown)(value)


def as_shown(value: object) -> str:
    if isinstance(value, dict):
        return "{...}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(as_shown, value))}]"[:100]
    return repr(redacted(value))[:100] if isinstance(value, str) else str(value)[:100]


def _integer(low: int, high: int) -> Kind[int]:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    return Kind(f"an integer from {low} to {high}", read, int)


def _text(expected: str, pattern: str, hide: Callable[[object], str] | None = None) -> Kind[str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError
        return value

    return Kind(expected, read, hide=hide)


def _choice(*words: str) -> Kind[str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or value.lower() not in words:
            raise ValueError
        return value.lower()

    return Kind(f"one of {', '.join(words)}", read)


def _above_zero(value: object) -> float:
    if not (number := timing.seconds(value, "value")):
        raise ValueError
    return number


def _up_to_a_second(value: object) -> float:
    if (number := timing.seconds(value, "interval")) > 1:
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


def _functions(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError
    if not all(isinstance(name, str) and re.fullmatch(rf"{_NAME}:{_NAME}", name) for name in value):
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


_ABOVE_ZERO: Final = Kind("seconds, more than 0", _above_zero, float)
_A_SECOND: Final = Kind("seconds, from 0 to 1", _up_to_a_second, float)
_SWITCH: Final = Kind("true or false", _boolean, _boolean_text)
_KEEP: Final = Kind(
    'seconds, 0 or more (false: delete at once, "forever": keep)', _retention, _retention_text
)
URL: Final = Kind(
    'postgresql://user@host/database, "host=... dbname=..." or "embedded"', _url, hide=_shown_url
)
_TOKEN: Final = _text("printable ASCII without spaces", r"[!-~]+", lambda _: "***")


# ------------------------------------------------------------------ the sections


def _key(default: T, kind: Kind[T]) -> T:
    return field(default=default, metadata={"kind": kind}, repr=kind.hide is None)


def kinds_of(section: type[Section]) -> dict[str, Kind[Any]]:
    return {each.name: each.metadata["kind"] for each in fields(section) if each.metadata}


@dataclass(frozen=True)
class Section:
    """Checks its values however it is made: ConfigError names the key, value and expectation."""

    def __post_init__(self) -> None:
        problems = []
        for each in fields(self):
            value = getattr(self, each.name)
            if not each.metadata or value is each.default:
                continue
            kind: Kind[object] = each.metadata["kind"]
            try:
                object.__setattr__(self, each.name, kind.read(value))
            except ValueError:
                where = f"{type(self).__name__}.{each.name}"
                problems.append(f"{where} = {kind.shown(value)}: expected {kind.expected}")
        if problems:
            raise ConfigError(*problems)


@dataclass(frozen=True)
class Database(Section):
    """``url`` is empty when none was given nor required. ``pooler``: whether one stands before
    Postgres that shares sessions between clients; None finds it out."""

    url: str = _key("", URL)
    pooler: bool | None = _key(None, _SWITCH)

    def __repr__(self) -> str:
        return f"Database(url={redacted(self.url)!r})"


@dataclass(frozen=True)
class Server(Section):
    """Where the daemon listens; without ``dashboard`` only health and metrics are served."""

    host: str = _key("127.0.0.1", _text("a host name or address", r"[^\s/]+"))
    port: int = _key(8765, _integer(0, 65535))
    token: str | None = _key(None, _TOKEN)
    dashboard: bool = _key(True, _SWITCH)


@dataclass(frozen=True)
class Tasks(Section):
    """``setup`` is "module:function"; ``max_payload`` is bytes of JSON."""

    modules: tuple[str, ...] = _key(
        (),
        Kind('a list of modules such as ["myapp.tasks", "other.*"]', _modules, _comma_separated),
    )
    setup: str | None = _key(None, _text('"module:function"', rf"{_NAME}:{_NAME}"))
    max_payload: int = _key(1_048_576, _integer(1, 255 * 1_048_576))  # more jsonb cannot hold
    middleware: tuple[str, ...] = _key(
        (), Kind('a list of "module:function"', _functions, _comma_separated)
    )


@dataclass(frozen=True)
class WorkerConfig(Section):
    """One queue's worker; None adapts by itself."""

    concurrency: int = _key(10, _integer(1, 1000))
    poll_interval: float = _key(1.0, _ABOVE_ZERO)
    flush_interval: float | None = _key(None, _A_SECOND)
    fetch_batch_size: int | None = _key(None, _integer(1, 10_000))


@dataclass(frozen=True)
class Worker(WorkerConfig):
    """Every queue's worker; ``queues`` has those with overrides, what they inherit included.

    ``processes``: how many processes of the daemon, each with all of these workers.
    """

    queues: Mapping[str, WorkerConfig] = field(default_factory=dict)
    processes: int = _key(1, _integer(1, 64))

    def for_queue(self, name: str) -> WorkerConfig:
        """The worker of this queue."""
        inherited = {key: getattr(self, key) for key in kinds_of(WorkerConfig)}
        return self.queues.get(name) or WorkerConfig(**inherited)


@dataclass(frozen=True)
class Coordinator(Section):
    """``load`` sees to it that the timeout is at least two intervals."""

    heartbeat_interval: float = _key(5.0, _ABOVE_ZERO)
    heartbeat_timeout: float = _key(15.0, _ABOVE_ZERO)
    shutdown_timeout: float = _key(25.0, _ABOVE_ZERO)


@dataclass(frozen=True)
class Scheduler(Section):
    """``timezone`` holds for schedules that name none."""

    timezone: str = _key("UTC", Kind("a time zone such as Europe/Berlin", _time_zone))


@dataclass(frozen=True)
class Retention(Section):
    """Seconds that a finished execution is kept: 0 deletes at once, FOREVER never."""

    completed: float = _key(604_800.0, _KEEP)
    failed: float = _key(2_592_000.0, _KEEP)


@dataclass(frozen=True)
class Log(Section):
    """``auto`` is the console on a terminal and JSON otherwise."""

    level: str = _key("info", _choice("debug", "info", "warning", "error"))
    format: str = _key("auto", _choice("auto", "console", "json"))


SECTIONS: Final[Mapping[str, type[Section]]] = {
    "database": Database,
    "server": Server,
    "tasks": Tasks,
    "worker": Worker,
    "coordinator": Coordinator,
    "scheduler": Scheduler,
    "retention": Retention,
    "log": Log,
}
KEYS: Final[Mapping[str, Kind[Any]]] = {
    f"{section}.{key}": kind
    for section, cls in SECTIONS.items()
    for key, kind in kinds_of(cls).items()
}


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
