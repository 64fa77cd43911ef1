"""Tasks that do to their server whatever a process can do to itself."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from conductor_cli import Conductor
from tests.support.command import Project, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TASKS = '''
import ctypes, os, signal, socket, sys, threading, time
from pathlib import Path
from conductor_cli import task

HERE = Path(__file__).parent

def mark(name):
    (HERE / f"{name}.{os.getpid()}").touch()

@task
def greet(name: str) -> str:
    return f"Hello, {name}!"

@task(timeout=0.3, max_attempts=1)
def never(name: str) -> None:
    """Does not return, whatever is raised in it."""
    mark(name)
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass

@task(queue="other")
def short() -> str:
    mark("short")
    time.sleep(8)
    return "done"

@task
def fork(how: str) -> int:
    """How a child ends that leaves the task."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if how == "raises":
        raise ValueError("in the child")
    if how == "exits":
        sys.exit(3)
    print("said by the child")
    return 0

@task
async def fork_async(how: str) -> int:
    return fork(how)

@task
def handle() -> None:
    """Python refuses this outside the main thread."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

@task
def handle_below() -> None:
    """As a library not written in Python may."""
    ctypes.CDLL(None).signal(signal.SIGTERM, ctypes.c_void_p(1))

@task
def block_here() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

@task
def leak() -> None:
    """A thread that nobody ends, and that is not daemonic."""
    threading.Thread(target=time.sleep, args=(3600,), daemon=False).start()

@task
def close_database() -> int:
    """Closes every connection to Postgres that this process has."""
    closed = 0
    for fd in range(3, 200):
        try:
            dup = socket.socket(fileno=os.dup(fd))
        except OSError:
            continue
        with dup:
            try:
                peer = str(dup.getpeername())
            except OSError:
                continue
        if ".s.PGSQL." in peer:
            os.close(fd)
            closed += 1
    return closed
'''


@pytest.fixture
def project(tmp_path: Path, database_url: str) -> Project:
    return _project(tmp_path, database_url, 20.0)


def _project(folder: Path, url: str, shutdown_timeout: float) -> Project:
    made = Project(folder, url, shutdown_timeout=shutdown_timeout)
    (folder / "work.py").write_text(TASKS)
    return made


@pytest.fixture
def client(database_url: str) -> Iterator[Conductor]:
    with Conductor.create(database_url) as made:
        yield made


def test_a_server_with_too_many_stuck_tasks_drains_and_exits_for_its_supervisor(
    project: Project, client: Conductor
) -> None:
    with project.start("start-server", "--concurrency", "1") as server:
        server.wait_until_ready()
        stuck = [client.invoke("never", {"name": f"never{n}"}) for n in range(2)]
        eventually(lambda: project.marks("never1"))
        waiting = client.invoke("greet", {"name": "you"})
        running = client.invoke("short")
        eventually(lambda: project.marks("short"))
        assert server.end() == 1
        assert "2 tasks of queue 'default' did not return" in server.err
    for id in stuck:
        found = client.get(id)
        assert found is not None
        assert found.state == "failed"
        assert found.error is not None
        assert found.error.type == "TimeoutError"
    done, left = client.get(running), client.get(waiting)
    assert done is not None
    assert left is not None
    assert (done.state, done.runs) == ("completed", 1)  # it was let finish
    assert (left.state, left.runs) == ("pending", 0)
    with project.start("start-server") as again:
        again.wait_until_ready()
        assert client.wait(waiting, timeout=20) == "Hello, you!"


def test_a_server_does_not_wait_for_what_is_stuck(project: Project, client: Conductor) -> None:
    with project.start("start-server", "--concurrency", "1") as server:
        server.wait_until_ready()
        client.invoke_many("never", [{"name": f"never{n}"} for n in range(2)])
        server.wait_for("did not return")
        began = time.monotonic()
        assert server.end() == 1
        assert time.monotonic() - began < 8  # of a shutdown_timeout of 20


@pytest.mark.parametrize("task", ["fork", "fork_async"])
def test_a_forked_child_that_leaves_the_task_ends_and_is_no_second_server(
    project: Project, client: Conductor, task: str
) -> None:
    with project.start("start-server", "--concurrency", "2") as server:
        server.wait_until_ready()
        for how, code in (("returns", 0), ("raises", 1), ("exits", 3)):
            id = client.invoke(task, {"how": how})
            assert client.wait(id, timeout=20) == code
            found = client.get(id)
            assert found is not None
            assert found.runs == 1
        assert "in the child" in server.err
        assert client.wait(client.invoke("greet", {"name": "you"}), timeout=20) == "Hello, you!"
        server.signal(signal.SIGTERM)
        assert server.end() == 0


@pytest.mark.parametrize("how", ["handle", "handle_below", "block_here"])
def test_a_task_cannot_keep_the_server_from_hearing_signals(
    project: Project, client: Conductor, how: str
) -> None:
    with project.start("start-server") as server:
        server.wait_until_ready()
        client.invoke(how)
        assert client.wait(client.invoke("greet", {"name": "you"}), timeout=20) == "Hello, you!"
        eventually(lambda: client.list(task=how)[0].runs == 1)
        until = time.monotonic() + 30
        while "server.stopping" not in server.err and time.monotonic() < until:
            server.signal(signal.SIGTERM)
            time.sleep(0.5)
        assert server.end() == 0


def test_a_leaked_thread_holds_the_process_no_longer_than_it_may_take_to_stop(
    tmp_path: Path, database_url: str, client: Conductor
) -> None:
    project = _project(tmp_path, database_url, 3.0)
    with project.start("start-server") as server:
        server.wait_until_ready()
        client.wait(client.invoke("leak"), timeout=20)
        began = server.signal(signal.SIGTERM)
        assert server.end() == 0
        assert time.monotonic() - began < 5


def test_a_server_whose_connections_a_task_has_closed_opens_others(
    project: Project, client: Conductor
) -> None:
    with project.start("start-server") as server:
        server.wait_until_ready()
        id = client.invoke("close_database")
        # By the time it is noticed such a number may be another connection's.
        assert client.wait(id, timeout=60) >= 3
        ids = client.invoke_many("greet", [{"name": str(n)} for n in range(50)])
        for n, each in enumerate(ids):
            assert client.wait(each, timeout=30) == f"Hello, {n}!"
        server.signal(signal.SIGTERM)
        assert server.end() == 0
