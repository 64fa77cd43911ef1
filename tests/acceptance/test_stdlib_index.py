"""The example on real input: the source files of the running Python's standard library.

Drained by one process, then by three servers of which one is killed with -9 half-way: both
times the totals are those of a plain single-threaded loop over the same files.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conductor_cli import Conductor

EXAMPLE = Path(__file__).parents[2] / "examples" / "stdlib_index"
CONDUCTOR = (sys.executable, "-m", "conductor_cli")

pytestmark = pytest.mark.timeout(240)


class Project:
    """A copy of the example that works on the test's database."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "CONDUCTOR_DATABASE_URL": url,
            "CONDUCTOR_SERVER_PORT": "0",
            "CONDUCTOR_COORDINATOR_HEARTBEAT_INTERVAL": "1",
            "CONDUCTOR_COORDINATOR_HEARTBEAT_TIMEOUT": "3",
        }
        self.servers: list[subprocess.Popen[str]] = []

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            check=False,
            text=True,
            timeout=200,
        )
        assert done.returncode in (0, 1), done.stderr
        return done.stdout

    def totals(self, command: str) -> dict[str, int]:
        told: dict[str, int] = json.loads(self.run(sys.executable, "stdlib_index.py", command))
        return told

    def start_server(self) -> subprocess.Popen[str]:
        log = (self.folder / f"server{len(self.servers)}.log").open("w")
        with log:
            server = subprocess.Popen(
                [*CONDUCTOR, "start-server"],
                cwd=self.folder, env=self.environment, stdout=log, stderr=log, text=True,
            )  # fmt: skip
        self.servers.append(server)
        return server

    def close(self) -> None:
        for server in self.servers:
            server.kill()
            server.wait(10)


@pytest.fixture
def project(tmp_path: Path, database_url: str) -> Iterator[Project]:
    folder = tmp_path / "stdlib_index"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns(".conductor", "__pycache__"))
    made = Project(folder, database_url)
    yield made
    made.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What a plain loop finds."""
    totals = Project(EXAMPLE, "postgresql://nowhere").totals("plain")
    assert totals["files"] > 500
    return totals


def test_a_drain_finds_what_a_plain_loop_finds(project: Project, plain: dict[str, int]) -> None:
    project.run(sys.executable, "stdlib_index.py", "enqueue")
    report = json.loads(project.run(*CONDUCTOR, "drain", "--json"))
    assert report["completed"] == plain["files"]
    assert report["failed"] == plain["failed"] == len(report["failures"])
    assert all("does not parse" in failure["error"]["message"] for failure in report["failures"])
    assert project.totals("totals") == plain


def test_three_servers_of_which_one_is_killed_find_it_too(
    project: Project, plain: dict[str, int], database_url: str
) -> None:
    servers = [project.start_server() for _ in range(3)]
    with Conductor.create(database_url) as conductor:
        _until(lambda: _count(conductor, "select count(*) from conductor.orchestrators") == 3)
        project.run(sys.executable, "stdlib_index.py", "enqueue")
        everything = plain["files"] + plain["failed"]
        _until(lambda: _ended(conductor) >= everything / 2)
        servers[0].send_signal(signal.SIGKILL)
        _until(lambda: _ended(conductor) >= everything, timeout=120)
        _until(lambda: _count(conductor, SUMMARIES) >= 1, timeout=30)
    assert project.totals("totals") == plain
    for server in servers[1:]:
        server.send_signal(signal.SIGTERM)
    assert [server.wait(30) for server in servers] == [-signal.SIGKILL, 0, 0]


SUMMARIES = (
    "select count(*) from conductor.executions where task = 'summarise' and state = 'completed'"
)


def _ended(conductor: Conductor) -> int:
    return _count(
        conductor,
        "select count(*) from conductor.executions "
        "where task = 'index_file' and state in ('completed', 'failed')",
    )


def _count(conductor: Conductor, query: str) -> int:
    with conductor.database.connection() as conn:
        row: Any = conn.execute(query.encode()).fetchone()
        return int(row[0])


def _until(check: Callable[[], bool], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
