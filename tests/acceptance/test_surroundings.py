"""``[tasks] setup`` and middleware, with the command."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.command import Project, eventually

if TYPE_CHECKING:
    from pathlib import Path

SURROUND = """
import threading, time
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from conductor_cli import task

HERE = Path(__file__).parent
current = ContextVar("current", default="nobody")

@contextmanager
def setup():
    name = threading.current_thread().name
    token = current.set(f"entered in {name}")
    yield
    current.reset(token)
    (HERE / f"left.{threading.current_thread().name}").touch()

@contextmanager
def endless():
    (HERE / "setup.begun").touch()
    while True:
        time.sleep(0.05)

@contextmanager
def shout(ctx):
    current.set(current.get() + "!")
    yield

@asynccontextmanager
async def awaited(ctx):
    yield

@task
def look() -> str:
    return current.get()
"""


@pytest.fixture
def project(tmp_path: Path, database_url: str) -> Project:
    made = Project(tmp_path, database_url, shutdown_timeout=3.0)
    (tmp_path / "surround.py").write_text(SURROUND)
    return made


def settings(setup: str = "setup", middleware: str = "shout") -> dict[str, str]:
    return {
        "CONDUCTOR_TASKS_MODULES": "surround",
        "CONDUCTOR_TASKS_SETUP": f"surround:{setup}",
        "CONDUCTOR_TASKS_MIDDLEWARE": f"surround:{middleware}",
    }


@pytest.mark.parametrize("processes", [1, 2])
def test_the_setup_is_entered_and_left_in_the_main_thread_and_seen_by_each_run(
    project: Project, processes: int
) -> None:
    env = settings()
    words = ("start-server", "--processes", str(processes))
    with project.start(*words, env=env) as server:
        server.wait_until_ready()
        for _ in range(2):
            done = project.run("invoke", "look", "--wait", env=env)
            assert done.out == '"entered in MainThread!"\n', done
        server.signal(signal.SIGTERM)
        assert server.end() == 0
    assert [each.name for each in project.marks("left")] == ["left.MainThread"]


def test_run_surrounds_a_task_as_a_server_does(project: Project) -> None:
    done = project.run("run", "look", env=settings())
    assert done.out == '"entered in MainThread!"\n', done


def test_a_server_can_be_stopped_while_its_setup_does_not_end(project: Project) -> None:
    with project.start("start-server", env=settings(setup="endless")) as server:
        eventually(lambda: project.marks("setup"))
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.end(within=10) == 4
        assert time.monotonic() - began < 4.5


@pytest.mark.parametrize("command", [("start-server",), ("drain",), ("run", "look")])
def test_middleware_for_async_tasks_only_is_refused_at_the_start(
    project: Project, command: tuple[str, ...]
) -> None:
    done = project.run(*command, env=settings(middleware="awaited"))
    assert done.code == 2
    assert "'surround:awaited', which is for async tasks only" in done.err
