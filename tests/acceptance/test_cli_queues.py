"""``conductor queues``: look and act."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from conductor_cli import Conductor
from conductor_cli.store.reports import QueueReport
from tests.support.command import Project

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)
KEYS = set(QueueReport.__struct_fields__)


@pytest.fixture
def project(tmp_path: Path, database_url: str) -> Project:
    return Project(tmp_path, database_url)


def test_queues_are_listed_paused_and_resumed(project: Project) -> None:
    id = project.run("invoke", "greet", '{"name": "x"}', "--queue", "default").out.strip()
    (listed,) = project.run("queues", "--json").json
    assert set(listed) == KEYS
    assert (listed["queue"], listed["paused"], listed["ready"]) == ("default", False, 1)

    assert project.run("queues", "pause", "default", "--json").json["paused"] is True
    again = project.run("queues", "pause", "default")
    assert (again.code, again.out) == (1, "default not paused: it was already.\n")
    drained = project.run("drain", "--json")
    assert (drained.code, drained.json["completed"], drained.json["left_blocked"]) == (0, 0, 1)
    assert "conductor queues resume default" in project.run("executions", "show", id).out

    assert project.run("queues", "resume", "default").out == "default resumed.\n"
    assert project.run("queues", "resume", "default").code == 1
    assert project.run("drain", "--json").json["completed"] == 1


def test_a_queue_that_is_not_there_yet_is_paused_with_a_word(project: Project) -> None:
    done = project.run("queues", "pause", "later")
    assert done.code == 0
    assert "no queue 'later' yet" in done.err
    assert project.run("queues", "pause", "a b").code == 2


def test_a_purge_is_shown_first_and_done_with_yes(project: Project) -> None:
    with Conductor.create(project.url) as conductor:
        conductor.invoke_many("greet", [{}] * 1200, queue="default")
    shown = project.run("queues", "purge", "default")
    assert (shown.code, shown.out) == (1, "1200 of queue default would be cancelled.\n")
    assert "--yes" in shown.err
    done = project.run("queues", "purge", "default", "--yes", "--json").json
    assert done == {"queue": "default", "pending": 1200, "cancelled": 1200}
    assert project.run("queues", "purge", "default", "--yes").code == 1
    (first,) = project.run("executions", "--state", "cancelled", "--limit", "1", "--json").json
    assert first["error"]["message"] == "purged"


def test_what_is_resumed_is_told_also_where_nothing_else_is_known_of_the_queue(
    project: Project,
) -> None:
    assert project.run("queues", "pause", "later").code == 0
    resumed = project.run("queues", "resume", "later", "--json")
    assert (resumed.json["queue"], resumed.json["paused"]) == ("later", False)
    assert project.run("queues", "pause", "later").code == 0
    assert project.run("queues", "resume", "later").out == "later resumed.\n"


def test_an_unknown_queue_is_told_with_the_nearest(project: Project) -> None:
    project.run("invoke", "greet", '{"name": "x"}', "--queue", "default")
    for words in (("resume", "defualt"), ("purge", "defualt"), ("purge", "defualt", "--yes")):
        done = project.run("queues", *words)
        assert (done.code, done.out) == (1, "")
        assert "There is no queue 'defualt'. Did you mean 'default'?" in done.err


def test_what_changes_nothing_says_so(project: Project) -> None:
    project.run("invoke", "greet", '{"name": "x"}', "--queue", "default")
    done = project.run("queues", "resume", "default")
    assert (done.code, done.err) == (1, "Nothing changed.\n")
    assert done.out == "default not resumed: it was not paused.\n"
