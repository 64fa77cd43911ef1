"""``conductor schedules``: look and act."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from conductor_cli import Conductor
from tests.support.command import Project

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)
KEYS = {
    "task", "name", "queue", "expression", "timezone", "missed", "payload", "declared", "paused",
    "next_at", "last_at",
}  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, database_url: str) -> Project:
    made = Project(tmp_path, database_url)
    assert made.run("migrate").code == 0
    with Conductor.create(database_url) as conductor:
        conductor.schedule("greet", "hourly", "0 * * * *", {"name": "x"})
        conductor.schedule("build", "hourly", "0 * * * *", {"kind": "x"})
    return made


def test_schedules_are_listed_paused_resumed_triggered_and_deleted(project: Project) -> None:
    listed = project.run("schedules", "--json").json
    assert {"greet", "build"} <= {each["task"] for each in listed}
    assert all(set(each) == KEYS for each in listed)
    (greet,) = project.run("schedules", "list", "--task", "greet", "--json").json
    assert greet["next_at"].endswith(":00:00Z")

    paused = project.run("schedules", "pause", "greet", "hourly", "--json").json
    assert (paused["paused"], paused["next_at"]) == (True, None)
    again = project.run("schedules", "pause", "greet")
    assert (again.code, again.out) == (1, "greet hourly not paused: it was already.\n")
    assert project.run("schedules", "resume", "greet").out == "greet hourly resumed.\n"

    id = project.run("schedules", "trigger", "greet", "hourly").out.strip()
    made = project.run("executions", "show", id, "--json").json
    assert (made["task"], made["payload"]) == ("greet", {"name": "x"})

    assert project.run("schedules", "delete", "greet", "hourly").code == 0
    assert project.run("schedules", "--task", "greet", "--json").json == []


def test_a_schedule_has_to_be_one(project: Project) -> None:
    ambiguous = project.run("schedules", "pause", "hourly")
    assert ambiguous.code == 2
    assert "build hourly, greet hourly" in ambiguous.err
    assert project.run("schedules", "pause", "nothing").code == 1
    assert project.run("schedules", "pause", "a", "b", "c").code == 2
    assert project.run("schedules", "pause").code == 2


def test_deleting_a_declared_one_says_that_it_comes_back(project: Project) -> None:
    declared = next(e for e in project.run("schedules", "--json").json if e["declared"])
    done = project.run("schedules", "delete", declared["task"], declared["name"])
    assert done.code == 0
    assert "comes back" in done.err
    project.run("migrate")
    assert declared["name"] in {e["name"] for e in project.run("schedules", "--json").json}
