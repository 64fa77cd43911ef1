"""Every command with every option: help, rubbish, and databases in every bad state.

The commands run in this process, so that there can be hundreds of them.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any, Final

import click
import pytest

from conductor_cli import cli
from conductor_cli.cli import session
from tests.support.command import WORK, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)

RUBBISH: Final = (
    *("", " ", "-1", "nan", "1e999", "99999999999999999999", "soon", "☃", "\udcff", "a b", "%s"),
    *("'; --", "x" * 300, "1h☃", "../x", "[1", "1:2"),
)
TOO_MUCH: Final = re.compile(r"Traceback|\(--debug shows where\)|psycopg")
SHARED: Final = {"config", "database_url", "debug"}
ENDLESS: Final = ("start-server", "drain")  # which take signals, or run until they are told


def commands(group: click.Group = cli.root, words: tuple[str, ...] = ()) -> Iterator[Any]:
    """Every command that can be typed: its words and what click knows of it."""
    for name, command in group.commands.items():
        yield (*words, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))


ALL: Final = dict(commands())
LEAVES: Final = {k: v for k, v in ALL.items() if not isinstance(v, click.Group)}
NEED_A_DATABASE: Final = [
    words
    for words in LEAVES
    if words[0] in ("executions", "schedules", "queues", "status", "invoke", "migrate", "doctor")
]


class Terminal:
    """A project in which commands are typed; what they say is kept apart from other tests."""

    def __init__(self, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._patch = patch

    def use(self, url: str) -> None:
        self._patch.setenv("CONDUCTOR_DATABASE_URL", url)

    def type(self, *words: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        sys.modules.pop("work", None)
        code = cli.main(words)
        said = self._capsys.readouterr()
        return code, said.out, said.err


@pytest.fixture
def terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Terminal]:
    (tmp_path / "conductor.toml").write_text('[tasks]\nmodules = ["work"]\n')
    (tmp_path / "work.py").write_text(WORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(session, "PATIENCE", 0.1)
    yield Terminal(capsys, monkeypatch)
    sys.modules.pop("work", None)


def arguments(command: click.Command, value: str | None = None) -> list[str]:
    """What the command cannot do without."""
    required = {"task": "greet", "name": "thing", "queue": "default", "words": "thing", "id": "0"}
    return [
        required[str(each.name)] if value is None else value
        for each in command.params
        if isinstance(each, click.Argument) and each.required
    ]


def is_readable(err: str) -> bool:
    """One line that says what is wrong, and nothing of where in the program."""
    wrong = [line for line in err.splitlines() if line.startswith("Error: ")]
    return len(wrong) == 1 and not TOO_MUCH.search(err)


# ── Help ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("words", [(), *ALL], ids=" ".join)
def test_every_command_has_help(terminal: Terminal, words: tuple[str, ...], flag: str) -> None:
    code, out, err = terminal.type(*words, flag)
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: conductor{''.join(f' {word}' for word in words)} [OPTIONS]")
    assert "-h, --help" in out


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_option_says_what_it_is_for(words: tuple[str, ...]) -> None:
    for each in ALL[words].params:
        if isinstance(each, click.Option) and not each.hidden:
            assert each.help, each.name
            assert each.help.endswith("."), each.name


def test_no_help_is_that_of_another_command() -> None:
    first_lines = [(command.help or "").splitlines()[0] for command in LEAVES.values()]
    assert len(set(first_lines)) == len(first_lines)
    healthcheck = {each.name: each.help for each in ALL["healthcheck",].params}
    assert "ask" in healthcheck["host"]
    assert "ask" in healthcheck["port"]


@pytest.mark.parametrize(
    "words", [k for k, v in ALL.items() if isinstance(v, click.Group)], ids=" ".join
)
def test_a_groups_help_says_that_it_lists_by_itself(
    terminal: Terminal, words: tuple[str, ...]
) -> None:
    _, out, _ = terminal.type(*words, "-h")
    named = " ".join(words)
    assert f"`conductor {named}` alone lists" in " ".join(out.split())


# ── Durations, one way ───────────────────────────────────────────────────────────────────


def test_a_duration_is_taken_one_way_by_every_option(terminal: Terminal, database_url: str) -> None:
    terminal.use(database_url)
    terminal.type("migrate")
    taking = [
        (words, each.opts[0])
        for words, command in LEAVES.items()
        for each in command.params
        if each.name in ("delay", "since", "until", "timeout", "over") and words[0] not in ENDLESS
    ]
    assert (("invoke",), "--delay") in taking
    assert (("executions", "list"), "--since") in taking
    for words, option in taking:
        for given in ("90", "1.5", "90s", "30m", "1h", "2d", "1w", "1h30m", "0"):
            more = ["--wait"] if option == "--timeout" else []
            if more and given != "0":
                continue  # it would be waited for
            code, _, err = terminal.type(*words, *arguments(ALL[words]), option, given, *more)
            assert "is not" not in err, (words, option, given)
            assert "neither" not in err, (words, option, given)
            assert code in (0, 1, 2, 4)
        for given in ("soon", "-1", "1 hour", "1x", "1h-", "nan", "inf", "", "h"):
            code, _, err = terminal.type(*words, *arguments(ALL[words]), option, given)
            assert code == 2, (words, option, given)
            assert is_readable(err), err


# ── Rubbish ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_an_option_that_is_not_there_is_told_with_the_nearest(
    terminal: Terminal, words: tuple[str, ...]
) -> None:
    code, out, err = terminal.type(*words, *arguments(ALL[words]), "--jsno")
    assert (code, out) == (2, "")
    assert "--json" in err
    assert is_readable(err), err


@pytest.mark.parametrize(
    "words", [each for each in LEAVES if each[0] not in ENDLESS and each[0] != "init"], ids=" ".join
)
def test_rubbish_is_answered_in_one_line(
    terminal: Terminal, words: tuple[str, ...], database_url: str
) -> None:
    terminal.use(database_url)
    command = ALL[words]
    given = [
        *([*arguments(command), each.opts[0], value]
          for each in command.params
          if isinstance(each, click.Option) and not each.is_flag and each.name not in SHARED
          for value in RUBBISH),
        *(["--", *arguments(command, value)] for value in RUBBISH if arguments(command)),
        *([*arguments(command), "--", "{}", value] for value in RUBBISH),
    ]  # fmt: skip
    for more in given:
        code, _, err = terminal.type(*words, *more)
        assert code in (0, 1, 2), (more, code, err)
        assert not TOO_MUCH.search(err), (more, err)
        assert code != 2 or is_readable(err), (more, err)


@pytest.mark.parametrize("words", [each for each in LEAVES if each != ("init",)], ids=" ".join)
@pytest.mark.parametrize("value", RUBBISH)
def test_a_configuration_that_is_rubbish_is_exit_code_2(
    terminal: Terminal, words: tuple[str, ...], value: str
) -> None:
    code, _, err = terminal.type(*words, *arguments(ALL[words]), "--config", f"nowhere/{value}")
    assert code == 2
    if words != ("doctor",):
        assert is_readable(err), err


# ── Databases in every bad state ─────────────────────────────────────────────────────────


@pytest.mark.parametrize("words", NEED_A_DATABASE, ids=" ".join)
def test_no_database_is_exit_code_2(terminal: Terminal, words: tuple[str, ...]) -> None:
    code, _, err = terminal.type(*words, *_harmless(words))
    assert code == 2
    if words != ("doctor",):
        assert is_readable(err)
        assert "CONDUCTOR_DATABASE_URL" in err


@pytest.mark.parametrize("words", NEED_A_DATABASE, ids=" ".join)
def test_a_database_that_is_away_is_exit_code_5(terminal: Terminal, words: tuple[str, ...]) -> None:
    terminal.use(f"postgresql://me:s3cret@127.0.0.1:{free_port()}/db")
    code, out, err = terminal.type(*words, *_harmless(words))
    assert code == 5
    assert "s3cret" not in out + err
    if words != ("doctor",):
        assert is_readable(err)


@pytest.mark.parametrize(
    "words", [each for each in NEED_A_DATABASE if each != ("migrate",)], ids=" ".join
)
def test_a_database_without_the_schema_is_exit_code_1_and_says_what_to_do(
    terminal: Terminal, words: tuple[str, ...], empty_database_url: str
) -> None:
    terminal.use(empty_database_url)
    code, out, err = terminal.type(*words, *_harmless(words))
    assert code == 1
    assert "conductor migrate" in out + err
    if words != ("doctor",):
        assert is_readable(err)


def _harmless(words: tuple[str, ...]) -> list[str]:
    """Arguments with which the command gets as far as its database."""
    more = {
        ("invoke",): ["greet", '{"name": "x"}'],
        ("executions", "retry"): ["0"],
        ("executions", "cancel"): ["0"],
    }
    return more.get(words, arguments(ALL[words]))
