"""The settings: defaults < ``conductor.toml`` < environment < flags.

``load`` reads all four and either returns a frozen ``Config`` whose every value has been checked,
or raises one ``ConfigError`` that lists every mistake, each on a line of its own::

    conductor.toml:7: worker.concurrency = 'ten': expected an integer from 1 to 1000
    environment CONDUCTOR_SERVER_PORT = '99999': expected an integer from 0 to 65535

What there is to set is in ``sections``; its names that others need are importable from here.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import tomli_w

from conductor_cli.errors import ConfigError
from conductor_cli.sections import (
    FOREVER,
    KEYS,
    SECTIONS,
    URL,
    Config,
    Coordinator,
    Database,
    Kind,
    Log,
    Retention,
    Scheduler,
    Server,
    Tasks,
    Worker,
    WorkerConfig,
    as_shown,
    check_exposure,
    kinds_of,
    redacted,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "DEFAULT_FILE",
    "FOREVER",
    "QUEUE_NAME",
    "Config",
    "Coordinator",
    "Database",
    "Log",
    "Retention",
    "Scheduler",
    "Server",
    "Tasks",
    "Worker",
    "WorkerConfig",
    "check_exposure",
    "load",
    "redacted",
    "to_toml",
]

DEFAULT_FILE: Final = "conductor.toml"
QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9_.:-]{1,200}")
_VARIABLES: Final = {f"CONDUCTOR_{path.replace('.', '_').upper()}": path for path in KEYS}


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


def to_toml(settings: Mapping[str, object]) -> str:
    """``settings`` (tables by section) as the text of a configuration file."""
    return tomli_w.dumps(settings)


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
            if section not in SECTIONS:
                self._unknown(places.of(section), section, content, [*SECTIONS, *KEYS])
            elif not isinstance(content, dict):
                self._refuse(places.of(section), as_shown(content), f"expected a table [{section}]")
            else:
                self._read_section(section, content, places)

    def _read_section(self, section: str, content: dict[str, object], places: _Places) -> None:
        for key, value in content.items():
            path = f"{section}.{key}"
            if path == "worker.queues":
                self._read_queues(value, places)
            elif path in KEYS:
                self._set(path, value, places.of(section, key))
            else:
                known = [*kinds_of(SECTIONS[section]), *(["queues"] if section == "worker" else [])]
                self._unknown(places.of(section, key), key, value, known, KEYS)

    def _read_queues(self, queues: object, places: _Places) -> None:
        label = places.of("worker", "queues")
        if not isinstance(queues, dict):
            self._refuse(label, as_shown(queues), "expected tables [worker.queues.NAME]")
            return
        for name, content in queues.items():
            label = places.of("worker", "queues", name)
            if not QUEUE_NAME.fullmatch(name):
                self._refuse(label, as_shown(content), f"expected a name like {QUEUE_NAME.pattern}")
            elif not isinstance(content, dict):
                self._refuse(label, as_shown(content), f"expected a table [worker.queues.{name}]")
            else:
                self._read_queue(name, content, places)

    def _read_queue(self, name: str, content: dict[str, object], places: _Places) -> None:
        kinds = kinds_of(WorkerConfig)
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
            if path not in KEYS:
                self._unknown(f"flag {path}", path, value, KEYS)
            elif value is not None:
                self._set(path, value, f"flag {path}")

    def find_database(
        self, environ: Mapping[str, str], *, required: bool, file: Path | None
    ) -> None:
        if "database.url" in self._origins or self._unread:
            return
        url = environ.get("DATABASE_URL")
        if url and (required or _fits(URL, url)):  # it may be another program's, of another kind
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
        sections: dict[str, Any] = {name: cls(**self._of(name)) for name, cls in SECTIONS.items()}
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
            value = KEYS[path].from_text(text)
        except ValueError:
            value = text  # which no kind that is not text takes
        self._set(path, value, label)

    def _set(self, path: str, value: object, label: str) -> None:
        kind = KEYS[path]
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
        shown = "***" if secret else as_shown(value)
        hint = f"did you mean {near!r}?" if near else f"expected one of {', '.join(known)}"
        self._refuse(label, shown, f"unknown; {hint}")

    def _refuse(self, label: str, shown: str, problem: str) -> None:
        self._problems.append(f"{label} = {shown}: {problem}")


_SECRETIVE: Final = re.compile(r"(?i)pass|pw|secret|token|key|auth|cred|url|dsn|database")


def _fits(kind: Kind[object], value: object) -> bool:
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
    ours = any(name.startswith(f"CONDUCTOR_{section.upper()}_") for section in SECTIONS)
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
