"""The whole program behind a pooler in transaction mode, from an empty database on."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.command import Project, eventually
from tests.support.pooler import KINDS, pooled

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(90)

CRON = """
from conductor_cli import cron, task

@task(triggers=[cron("* * * * * *", name="each_second")])
def ticking() -> str:
    return "tick"
"""


@pytest.mark.parametrize("kind", KINDS)
def test_it_migrates_serves_ticks_drains_and_says_so(
    tmp_path: Path, empty_database_url: str, kind: str
) -> None:
    if "host=" not in empty_database_url:
        pytest.skip("needs a Postgres of the test session's own")
    with pooled(empty_database_url, kind) as url:
        project = Project(tmp_path, url)
        with (project.folder / "work.py").open("a") as work:
            work.write(CRON)
        assert project.run("migrate").code == 0
        assert project.run("migrate", "--status").code == 0
        with project.start("start-server") as server:
            server.wait_until_ready()
            assert '"pooler.found"' in server.err
            greeted = project.run("invoke", "greet", '{"name": "World"}', "--wait")
            assert (greeted.code, greeted.out) == (0, '"Hello, World!"\n')
            ticked = ("executions", "list", "--task", "ticking", "--state", "completed", "--json")
            eventually(lambda: len(project.run(*ticked).json) >= 2)
            found = {each["check"]: each for each in project.run("doctor", "--json").json}
            assert "transaction mode" in found["pooler"]["message"]
            assert " leads; " in found["leader"]["message"]
            server.signal(signal.SIGTERM)
            assert server.end() == 0
            assert '"service.died"' not in server.err
        project.run("invoke", "greet", '{"name": "Drain"}')
        drained = project.run("drain", "--json")
        assert drained.code == 0, drained
        assert json.loads(drained.out)["completed"] >= 1
