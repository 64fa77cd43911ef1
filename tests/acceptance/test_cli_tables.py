"""Every table on terminals of several widths: what matters is whole."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from typing import TYPE_CHECKING, Final
from uuid import UUID

import pytest
from rich.cells import cell_len

from conductor_cli import Conductor
from tests.support.command import Project, command

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)

WIDTHS: Final = (60, 80, 120, 200)
LONG: Final = "tenants.of.europe:refresh_materialised_views"
ERROR: Final = "the carrier 株式会社 does not answer: no route to host, tried for two minutes"
TASKS: Final = f'''
from conductor_cli import cron, on_event, one_of, task

@task(name="{LONG}", queue="reports-of-the-night", timeout=300, max_crashes=0, max_attempts=1,
      triggers=[cron("*/30 1-5 * * * mon-fri", name="every-half-minute-of-the-night"),
                on_event("sales.closed", where={{"kind": one_of("a", "b")}})])
def refresh() -> None:
    raise ValueError("{ERROR}\\nand a second line")

@task(triggers=[cron("*/5 * * * * *", name="five")])
def tell_time() -> None: ...
'''


@pytest.fixture
def project(tmp_path: Path, database_url: str) -> Project:
    made = Project(tmp_path, database_url)
    (tmp_path / "work.py").write_text(TASKS)
    assert made.run("migrate").code == 0
    with Conductor.create(database_url) as conductor:
        conductor.invoke_many(LONG, [{}] * 3)
    assert made.run("drain", "--queue", "reports-of-the-night").code == 1
    return made


def on_terminal(project: Project, width: int, *words: str) -> list[str]:
    """What a person sees, without colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    environment = {k: v for k, v in project.environment().items() if k != "COLUMNS"}
    with subprocess.Popen(
        command(*words), cwd=project.folder, env=environment, stdout=theirs, stdin=theirs,
        stderr=theirs,
    ):  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    return text.replace("\r\n", "\n").splitlines()


def joined(lines: list[str]) -> str:
    """The text that a folded column had, whichever column it was."""
    return re.sub(r"\s+", "", "".join(lines))


@pytest.mark.parametrize("width", WIDTHS)
def test_no_table_is_cut(project: Project, width: int) -> None:
    listed = {
        words: on_terminal(project, width, *words)
        for words in (
            ("tasks",), ("executions",), ("schedules",), ("queues",), ("status",),
            ("migrate", "--status"), ("start-server", "--dry-run"), ("doctor",),
        )
    }  # fmt: skip
    for words, lines in listed.items():
        assert lines, words
        assert not [line for line in lines if line.startswith("Error: ")], words
        too_wide = [line for line in lines if cell_len(line) > width]
        assert not [line for line in too_wide if not line.startswith("Database: ")], words
    whole = {words[0]: "\n".join(lines) for words, lines in listed.items()}
    for name in ("tasks", "executions", "schedules"):
        assert LONG in whole[name], name
    for name in ("tasks", "schedules", "start-server"):
        assert "*/30 1-5 * * * mon-fri" in whole[name], name
        assert "*/5 * * * * *" in whole[name], name
    assert "every-half-minute-of-the-night" in whole["schedules"]
    assert "on sales.closed where kind" in whole["tasks"]
    assert "reports-of-the-night" in whole["queues"]
    assert "reports-of-the-night" in whole["status"]
    assert ERROR.replace(" ", "") in joined(listed["executions",])


@pytest.mark.parametrize("width", WIDTHS)
def test_the_beginning_of_an_id_that_is_shown_finds_it(project: Project, width: int) -> None:
    lines = on_terminal(project, width, "executions", "--limit", "2")
    ids = re.findall(r"\b[0-9a-f]{8}-[0-9a-f-]{9,27}", "\n".join(lines))
    assert len(ids) == 2
    for each in ids:
        assert project.run("executions", "show", each, "--json").json["task"] == LONG


def test_a_beginning_that_others_have_is_shown_whole(project: Project) -> None:
    near = "01900000-0000-7000-8000-00000000000"
    with Conductor.create(project.url) as conductor:
        for last in "12":
            conductor.invoke("tell_time", id=UUID(near + last))
    lines = on_terminal(project, 200, "executions", "--task", "tell_time", "--limit", "1")
    (shown,) = re.findall(rf"{near}.", "\n".join(lines))
    assert project.run("executions", "show", shown).code == 0


def test_into_a_pipe_everything_goes_uncut_and_separated_by_tabs(project: Project) -> None:
    head, *rows = project.run("executions").out.splitlines()
    assert len(rows) == 3
    for row in rows:
        found = dict(zip(head.split("\t"), row.split("\t"), strict=True))
        assert found["error"] == f"ValueError: {ERROR}\\nand a second line"
        assert found["task"] == LONG
        assert len(found["id"]) == 36
