"""`conductor start-server` as its supervisor sees it: signals, exit codes, health."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from tests.support.command import Project, eventually, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)

SOON = 2.0  # "at once", on a machine that is busy with other tests


@pytest.fixture
def project(tmp_path: Path, database_url: str) -> Project:
    return Project(tmp_path, database_url)


def ready(port: int) -> tuple[int, dict[str, Any]]:
    """The answer of /readyz; 0 when there is none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
    except OSError:
        return 0, {}


@contextmanager
def door(url: str, port: int) -> Iterator[None]:
    """Postgres, which listens on a socket in a folder, at a TCP port of this machine."""
    folder = parse_qs(urlsplit(url).query).get("host", [""])[0]
    if not folder:
        pytest.skip("needs a Postgres of the test session's own")
    with socket.create_server(("127.0.0.1", port)) as listening:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    near = listening.accept()[0]
                    far = socket.socket(socket.AF_UNIX)
                    far.connect(f"{folder}/.s.PGSQL.5432")
                    for pair in ((near, far), (far, near)):
                        threading.Thread(target=pump, args=pair, daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError), source:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)


# ── Serving ──────────────────────────────────────────────────────────────────────────────


def test_a_server_works_answers_and_goes_when_told(project: Project) -> None:
    with project.start("start-server") as server:
        port = server.wait_until_ready()
        assert ready(port) == (200, {"status": "ready"})
        assert project.run("healthcheck", "--port", str(port)).out == "ready\n"
        done = project.run("invoke", "greet", '{"name": "World"}', "--wait")
        assert (done.code, done.out) == (0, '"Hello, World!"\n')
        found = project.run("status", "--json").json
        assert [s["id"] for s in found["servers"]] == [found["leader"]]
        assert found["servers"][0]["queues"] == ["default", "reports"]
        told = server.signal(signal.SIGTERM)
        assert server.end() == 0
        assert time.monotonic() - told < SOON
        assert server.out == ""
    assert project.run("status", "--json").json["servers"] == []


def test_invoke_waits_and_fails_with_its_execution(project: Project) -> None:
    with project.start("start-server") as server:
        server.wait_until_ready()
        done = project.run("invoke", "fail", "--wait")
        assert (done.code, done.out) == (1, "")
        assert "ValueError: broken" in done.err
        done = project.run("invoke", "fail", "--wait", "--json")
        assert (done.code, json.loads(done.out)["state"]) == (1, "failed")
        done = project.run("invoke", "give_up", "--wait")
        assert done.code == 1
        assert "no need" in done.err


def test_a_server_without_jobs_claims_nothing_and_does_not_lead(project: Project) -> None:
    project.run("invoke", "greet", '{"name": "x"}')
    with project.start("start-server", "--without-jobs") as server:
        assert ready(server.wait_until_ready())[0] == 200
        found = project.run("status", "--json").json
        assert (len(found["servers"]), found["leader"]) == (1, None)
        server.signal(signal.SIGINT)
        assert server.end() == 0
    assert project.run("executions", "--json").json[0]["state"] == "pending"


def test_a_server_brings_an_empty_database_up_to_date(
    tmp_path: Path, empty_database_url: str
) -> None:
    project = Project(tmp_path, empty_database_url)
    with project.start("start-server", "--queue", "reports", "--concurrency", "2") as server:
        assert json.loads(server.wait_for("Serving"))["queues"] == ["reports"]
        server.signal(signal.SIGTERM)
        assert server.end() == 0


# ── What keeps it from starting ──────────────────────────────────────────────────────────


def test_a_busy_port_is_exit_code_2_before_anything_starts(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = project.run("start-server", "--port", port)
    assert done.code == 2
    assert f"port {port} on 127.0.0.1 is in use" in done.err
    assert "server.starting" not in done.err


def test_an_open_dashboard_without_a_token_is_refused(project: Project) -> None:
    done = project.run("start-server", "--host", "0.0.0.0")
    assert done.code == 2
    assert "server.token" in done.err


def test_a_server_waits_for_a_database_that_is_not_there_yet(project: Project) -> None:
    postgres, port = free_port(), free_port()
    real = project.url
    user, name = urlsplit(real).username or "postgres", urlsplit(real).path
    project.url = f"postgresql://{user}@127.0.0.1:{postgres}{name}"
    with project.start("start-server", "--port", str(port)) as server:
        server.wait_for("database.lost")
        code, answer = ready(port)
        assert code == 503
        assert "the database is unreachable: Postgres at 127.0.0.1" in answer["reasons"][0]
        done = project.run("healthcheck", "--port", str(port))
        assert done.code == 1
        assert "the database is unreachable" in done.err
        with door(real, postgres):
            server.wait_until_ready()
            assert ready(port)[0] == 200
            server.signal(signal.SIGTERM)
            assert server.end() == 0
    assert "database.back" in server.err


def test_a_server_that_waits_for_the_database_goes_at_once(project: Project) -> None:
    project.url = f"postgresql://bob:s3cret@127.0.0.1:{free_port()}/app"
    with project.start("start-server") as server:
        server.wait_for("database.lost")
        told = server.signal(signal.SIGTERM)
        assert server.end() == 0
        assert time.monotonic() - told < SOON
        assert "s3cret" not in server.err


def test_a_server_that_waits_for_a_migration_goes_at_once(
    tmp_path: Path, empty_database_url: str
) -> None:
    project, port = Project(tmp_path, empty_database_url), free_port()
    with psycopg.connect(empty_database_url) as conn:
        conn.execute("create schema conductor")  # not committed: a migrator waits for this
        with project.start("start-server", "--port", str(port)) as server:
            eventually(lambda: "schema" in str(ready(port)[1].get("reasons")), what="the migration")
            told = server.signal(signal.SIGTERM)
            assert server.end() == 0
            assert time.monotonic() - told < SOON
        conn.rollback()
    assert project.run("migrate").code == 0


# ── Stopping ─────────────────────────────────────────────────────────────────────────────


def test_a_running_task_finishes_before_the_server_goes(project: Project) -> None:
    id = project.run("invoke", "short", '{"name": "short"}').out.strip()
    with project.start("start-server") as server:
        eventually(lambda: project.marks("short"))
        server.signal(signal.SIGTERM)
        assert server.end() == 0
    assert project.run("executions", "show", id, "--json").json["state"] == "completed"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_terminal_that_goes_stops_the_server_as_if_asked_to(
    project: Project, processes: int
) -> None:
    """Its whole group gets SIGHUP."""
    id = project.run("invoke", "short", '{"name": "short"}').out.strip()
    words = ("start-server", "--processes", str(processes))
    with project.start(*words, prefix=("setsid",)) as server:
        eventually(lambda: project.marks("short"))
        os.killpg(server.process.pid, signal.SIGHUP)
        assert server.end() == 0
    found = project.run("executions", "show", id, "--json").json
    assert (found["state"], found["runs"], found["crashes"]) == ("completed", 1, 0)


def test_nohup_keeps_a_server_alive_when_the_terminal_goes(project: Project) -> None:
    with project.start("start-server", prefix=("nohup",)) as server:
        server.wait_until_ready()
        server.signal(signal.SIGHUP)
        done = project.run("invoke", "greet", '{"name": "World"}', "--wait")
        assert done.out == '"Hello, World!"\n'
        assert server.process.poll() is None
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def test_a_second_signal_hands_back_and_is_exit_code_4(project: Project) -> None:
    id = project.run("invoke", "stay", '{"name": "stay"}').out.strip()
    with project.start("start-server") as server:
        eventually(lambda: project.marks("stay"))
        first = server.signal(signal.SIGTERM)
        server.signal(signal.SIGTERM)  # from a shell that signals the whole group: not a second one
        eventually(lambda: time.monotonic() - first > 1.1)
        assert server.process.poll() is None
        second = server.signal(signal.SIGTERM)
        assert server.end() == 4
        assert time.monotonic() - second < SOON
    found = project.run("executions", "show", id, "--json").json
    assert (found["state"], found["runs"]) == ("pending", 0)


def test_a_task_that_does_not_end_is_handed_back_within_the_shutdown_timeout(
    tmp_path: Path, database_url: str
) -> None:
    project = Project(tmp_path, database_url, shutdown_timeout=3.0)
    id = project.run("invoke", "stay", '{"name": "stay"}').out.strip()
    with project.start("start-server") as server:
        eventually(lambda: project.marks("stay"))
        told = server.signal(signal.SIGTERM)
        assert server.end() == 4
        assert time.monotonic() - told < 3.0
        assert "handed back" in server.err
    found = project.run("executions", "show", id, "--json").json
    assert (found["state"], found["runs"]) == ("pending", 0)


def test_a_server_is_unready_while_it_stops(project: Project) -> None:
    project.run("invoke", "stay", '{"name": "stay"}')
    with project.start("start-server") as server:
        port = server.wait_until_ready()
        eventually(lambda: project.marks("stay"))
        server.signal(signal.SIGTERM)
        eventually(lambda: ready(port)[0] == 503)
        assert ready(port)[1]["reasons"] == ["the server is stopping"]


def test_a_server_whose_service_died_is_exit_code_1(project: Project) -> None:
    with project.start("start-server") as server:
        server.wait_until_ready()
        with psycopg.connect(project.url, autocommit=True) as conn:
            conn.execute("alter table conductor.orchestrators rename to gone")
        assert server.end() == 1
        assert "Error: A part of the server died" in server.err


# ── Its surroundings ─────────────────────────────────────────────────────────────────────


def test_systemd_hears_when_it_is_ready_and_when_it_stops(project: Project, tmp_path: Path) -> None:
    name = f"conductor-test-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        listening.settimeout(20)
        with project.start("start-server", env={"NOTIFY_SOCKET": f"@{name}"}) as server:
            assert listening.recv(100) == b"READY=1"
            server.signal(signal.SIGTERM)
            assert listening.recv(100) == b"STOPPING=1"
            assert server.end() == 0


def test_sigusr1_tells_the_stacks_of_all_threads(project: Project) -> None:
    with project.start("start-server") as server:
        server.wait_until_ready()
        server.signal(signal.SIGUSR1)
        server.wait_for(f"Stacks of process {server.process.pid}:")
        server.wait_for("Thread worker.default.1 (most recent call last):")
        server.wait_for("daemon.py")
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def can_be_first() -> bool:
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    tried = subprocess.run([unshare, "--pid", "--fork", "true"], capture_output=True, check=False)
    return tried.returncode == 0


@pytest.mark.skipif(not can_be_first(), reason="needs the right to make a PID namespace")
def test_as_the_first_process_of_a_container_it_stops_and_collects_orphans(
    project: Project,
) -> None:
    id = project.run("invoke", "leave_orphan").out.strip()
    with project.start("start-server", prefix=("unshare", "--pid", "--fork")) as outside:
        outside.wait_until_ready()
        (first,) = children(outside.process.pid)
        found = eventually(lambda: ended(project, id))
        assert (found["state"], found["result"]) == ("completed", 7)
        (server,) = eventually(lambda: [c for c in [children(first)] if len(c) == 1])[0]
        assert children(server) == []
        os.kill(first, signal.SIGTERM)
        assert outside.end(within=10) == 0


def ended(project: Project, id: str) -> dict[str, Any] | None:
    found: dict[str, Any] = project.run("executions", "show", id, "--json").json
    return found if found["finished_at"] else None


def children(pid: int) -> list[int]:
    """Its children, those included that have ended and were not collected."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(each) for each in file.read().split()]
