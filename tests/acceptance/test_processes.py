"""`conductor start-server --processes 2`: to the outside one server, and no child is missed."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.command import Project, Running, eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)

HEARTBEAT_TIMEOUT = 15.0  # the default: what is rescued sooner was not rescued by silence
SETTINGS = f"""
[tasks]
modules = ["parallel"]
[coordinator]
heartbeat_timeout = {HEARTBEAT_TIMEOUT}
shutdown_timeout = {{shutdown_timeout}}
[server]
port = 0
[worker]
concurrency = 2
processes = 2
"""
TASKS = '''
"""Tasks that tell in which process they run, and wait until a file is there."""
import os, time
from pathlib import Path
from conductor_cli import Context, task

HERE = Path(__file__).parent

@task
def meet(name: str) -> int:
    """Ends once it runs in two processes at once."""
    (HERE / f"{name}.{os.getpid()}").touch()
    while len(list(HERE.glob(f"{name}.*"))) < 2:
        time.sleep(0.02)
    return os.getpid()

@task
def hold(ctx: Context, name: str) -> int:
    (HERE / f"{name}.{os.getpid()}").touch()
    while not (HERE / "go").exists():
        time.sleep(0.02)
    return os.getpid()

@task
def fork(ctx: Context, name: str) -> int:
    """Leaves behind a fork of its process, with all of its files, and runs on."""
    if ctx.runs == 1:
        if os.fork() == 0:
            while not (HERE / "go").exists():
                time.sleep(0.02)
            os._exit(0)
        (HERE / f"{name}.{os.getpid()}").touch()
        time.sleep(60)
    return ctx.runs

@task
def count(n: int) -> None:
    pass
'''


class Projects:
    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url

    def make(self, *, shutdown_timeout: float = 6.0, tasks: str = TASKS) -> Project:
        project = Project(self.folder, self.url)
        settings = SETTINGS.format(shutdown_timeout=shutdown_timeout)
        (self.folder / "conductor.toml").write_text(settings)
        (self.folder / "parallel.py").write_text(tasks)
        return project


@pytest.fixture
def projects(tmp_path: Path, database_url: str) -> Projects:
    return Projects(tmp_path, database_url)


@pytest.fixture
def project(projects: Projects) -> Project:
    return projects.make()


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def reasons(port: int) -> list[str]:
    code, body = get(port, "/readyz")
    told: list[str] = json.loads(body).get("reasons", [])
    assert (code == 200) == (not told)
    return told


def servers(project: Project) -> dict[int, str]:
    """Those the database knows: their ids by process id."""
    with psycopg.connect(project.url) as conn:
        rows = conn.execute("select pid, id from conductor.orchestrators").fetchall()
    return {pid: str(id) for pid, id in rows}


def invoke(project: Project, task: str, *payloads: dict[str, Any]) -> list[str]:
    with psycopg.connect(project.url) as conn:
        return [
            str(conn.execute(
                "select conductor.invoke(%s, %s::jsonb)", [task, json.dumps(payload)]
            ).fetchone()[0])  # type: ignore[index]
            for payload in payloads
        ]  # fmt: skip


def execution(project: Project, id: str) -> Any:
    query = "select state, result, runs, failures, crashes from conductor.executions where id=%s"
    with psycopg.connect(project.url) as conn:
        return conn.execute(query, [id]).fetchone()


def runners(project: Project, name: str) -> set[int]:
    """The processes in which a task has run."""
    return {int(path.suffix[1:]) for path in project.marks(name)}


def is_gone(pid: int) -> bool:
    """Whether it has ended; an orphan may wait for its new parent to notice."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return os.path.isdir("/proc/self")


def two(project: Project) -> dict[int, str]:
    found: dict[int, str] = eventually(
        lambda: (s := servers(project)) and len(s) == 2 and s, what="two servers"
    )
    return found


def all_gone(*pids: int) -> Callable[[], bool]:
    return lambda: all(map(is_gone, pids))


def hold_one(project: Project, name: str = "held") -> tuple[str, int]:
    """An execution that runs until there is a file `go`, and the process that runs it."""
    (id,) = invoke(project, "hold", {"name": name})
    eventually(lambda: runners(project, name))
    (pid,) = runners(project, name)
    return id, pid


# ── Serving ──────────────────────────────────────────────────────────────────────────────


def test_two_processes_share_the_work_and_are_one_server(project: Project) -> None:
    with project.start("start-server") as server:
        port = server.wait_until_ready()
        assert json.loads(server.wait_for("Serving http://"))["processes"] == 2
        assert reasons(port) == []
        children = servers(project)
        assert len(children) == 2
        assert server.process.pid not in children
        ids = invoke(project, "meet", *[{"name": "met"}] * 8)
        eventually(lambda: all(execution(project, id)[0] == "completed" for id in ids))
        assert {execution(project, id)[1] for id in ids} <= set(children)
        assert runners(project, "met") == set(children)
        shown = project.run("status", "--json").json
        assert {s["pid"] for s in shown["servers"]} == set(children)
        assert shown["leader"] in children.values()
        server.signal(signal.SIGTERM)
        assert server.end() == 0
        assert server.out == ""
    assert all_gone(*children)()
    assert servers(project) == {}


def test_the_lines_of_all_processes_are_whole_and_say_whose_they_are(project: Project) -> None:
    tasks = TASKS.replace("    pass\n", "").replace(
        "def count(n: int) -> None:",
        "def count(ctx: Context, n: int) -> None:\n"
        "    for _ in range(5):\n"
        "        ctx.logger.info('long', text='x' * 9000)",
    )
    (project.folder / "parallel.py").write_text(tasks)
    with project.start("start-server") as server:
        server.wait_until_ready()
        children = servers(project)
        ids = invoke(project, "count", *[{"n": n} for n in range(100)])
        eventually(lambda: all(execution(project, id)[0] == "completed" for id in ids))
        server.signal(signal.SIGTERM)
        assert server.end() == 0
    lines = [json.loads(line) for line in server.err.splitlines()]
    assert {line["pid"] for line in lines} == {server.process.pid, *children}
    assert {len(line["text"]) for line in lines if line["event"] == "long"} == {9000}


def test_the_metrics_are_the_sum_of_all_processes(project: Project) -> None:
    with project.start("start-server") as server:
        port = server.wait_until_ready()

        def number(name: str, **labels: str) -> float:
            families = text_string_to_metric_families(get(port, "/metrics")[1])
            found = [s.value for f in families for s in f.samples
                     if s.name == name and labels.items() <= s.labels.items()]  # fmt: skip
            return sum(found)

        ids = invoke(project, "meet", *[{"name": "met"}] * 4)
        ids += invoke(project, "count", *[{"n": n} for n in range(50)])
        eventually(lambda: all(execution(project, id)[0] == "completed" for id in ids))
        finished = "conductor_executions_finished_total"
        eventually(lambda: number(finished) == 54, what="every end being counted")
        assert number("conductor_execution_run_seconds_count", task="meet") == 4
        assert number("conductor_execution_run_seconds_bucket", task="count", le="+Inf") == 50
        assert number("conductor_processes") == 2
        assert number("conductor_is_leader") == 1
        _, pid = hold_one(project)
        assert number("conductor_running") == 1
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: number("conductor_processes") == 2 and len(servers(project)) == 2)
        eventually(lambda: number("conductor_executions_rescued_total") == 1)
        assert number("conductor_process_ended_total") == 1
        assert number(finished) == 54, "what a dead process had counted is lost"
        (project.folder / "go").touch()
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def test_systemd_hears_once_that_all_processes_are_ready(project: Project, tmp_path: Path) -> None:
    import socket

    name = f"conductor-processes-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        listening.settimeout(30)
        with project.start("start-server", env={"NOTIFY_SOCKET": f"@{name}"}) as server:
            assert listening.recv(100) == b"READY=1"
            assert len(servers(project)) == 2
            server.signal(signal.SIGTERM)
            assert listening.recv(100) == b"STOPPING=1"
            assert server.end() == 0
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.recv(100)


def test_sigusr1_tells_the_stacks_of_all_processes_with_the_names_of_threads(
    project: Project,
) -> None:
    with project.start("start-server") as server:
        server.wait_until_ready()
        children = servers(project)
        server.signal(signal.SIGUSR1)
        for pid in (server.process.pid, *children):
            server.wait_for(f"Stacks of process {pid}:")
        for thread in ("MainThread", "web", "worker.default.1"):
            server.wait_for(f"Thread {thread} (most recent call last):")
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def test_one_process_has_no_parent_and_no_children(project: Project) -> None:
    with project.start("start-server", "--processes", "1") as server:
        line = json.loads(server.wait_for("Serving http://"))
        assert not {"processes", "pid"} & line.keys()
        assert list(servers(project)) == [server.process.pid]
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def test_a_dry_run_tells_how_many_processes(project: Project) -> None:
    assert project.run("start-server", "--dry-run", "--json").json["processes"] == 2
    more = ("start-server", "--dry-run", "--processes", "5")
    assert "Processes: 5\n" in project.run(*more).out
    assert "Processes: 1\n" in project.run(*more, "--without-jobs").out
    assert "worker.processes" in project.run("start-server", "--processes", "0").err


def test_processes_share_the_embedded_postgres(project: Project) -> None:
    project.url = ""
    url = {"CONDUCTOR_DATABASE_URL": "embedded"}
    with project.start("start-server", env=url) as server:
        server.wait_for("Serving http://", within=60)
        found = project.run("status", "--json", env=url).json
        assert len(found["servers"]) == 2
        server.signal(signal.SIGTERM)
        assert server.end() == 0
    assert server.err.count("Embedded Postgres") == 1


# ── Dying ────────────────────────────────────────────────────────────────────────────────


def test_the_work_of_a_killed_child_runs_again_at_once_and_another_takes_its_place(
    project: Project,
) -> None:
    with project.start("start-server") as server:
        port = server.wait_until_ready()
        before = servers(project)
        id, victim = hold_one(project)
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(runners(project, "held")) == 2, what="the second run")
        assert time.monotonic() - killed < HEARTBEAT_TIMEOUT / 2
        eventually(lambda: reasons(port) == [], what="being ready again")
        after = two(project)
        assert victim not in after
        assert len(before.keys() & after.keys()) == 1
        assert "SIGKILL" in server.wait_for("process.ended")
        (project.folder / "go").touch()
        eventually(lambda: execution(project, id)[0] == "completed")
        _, pid, runs, failures, crashes = execution(project, id)
        assert pid in runners(project, "held") - {victim}
        assert (runs, failures, crashes) == (2, 0, 1)
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def test_a_death_is_noticed_though_what_a_task_has_forked_lives_on(project: Project) -> None:
    with project.start("start-server") as server:
        port = server.wait_until_ready()
        (id,) = invoke(project, "fork", {"name": "forked"})
        (victim,) = eventually(lambda: runners(project, "forked"))
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: execution(project, id)[:2] == ("completed", 2), what="its second run")
        assert time.monotonic() - killed < HEARTBEAT_TIMEOUT / 2
        eventually(lambda: reasons(port) == [], what="being ready again")
        (project.folder / "go").touch()
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def test_a_killed_leader_is_followed_at_once(project: Project) -> None:
    with project.start("start-server") as server:
        server.wait_until_ready()
        leader = eventually(lambda: leading(project), what="an election")
        killed = time.monotonic()
        os.kill(leader, signal.SIGKILL)
        eventually(lambda: leading(project) not in (None, leader), what="another one leading")
        assert time.monotonic() - killed < HEARTBEAT_TIMEOUT / 2
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def leading(project: Project) -> int | None:
    with psycopg.connect(project.url) as conn:
        row = conn.execute(
            "select o.pid from conductor.leadership l join conductor.orchestrators o "
            "on o.id = l.leader"
        ).fetchone()
    return row and row[0]


def test_a_child_told_to_stop_is_replaced_and_its_work_was_not_lost(project: Project) -> None:
    with project.start("start-server") as server:
        port = server.wait_until_ready()
        id, told = hold_one(project)
        os.kill(told, signal.SIGTERM)
        eventually(lambda: told in servers(project) and reasons(port) != [])
        (project.folder / "go").touch()
        eventually(lambda: told not in servers(project))
        assert execution(project, id)[:2] == ("completed", told)
        assert len(two(project)) == 2
        eventually(lambda: reasons(port) == [])
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def test_readiness_names_the_process_that_is_not_well(project: Project) -> None:
    with project.start("start-server") as server:
        port = server.wait_until_ready()
        stalled = min(servers(project))
        os.kill(stalled, signal.SIGSTOP)
        try:
            (reason,) = eventually(lambda: reasons(port), what="unreadiness")
            assert f"process {stalled} " in reason
            assert get(port, "/healthz")[0] == 200
        finally:
            os.kill(stalled, signal.SIGCONT)
        eventually(lambda: reasons(port) == [], what="being ready again")
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def test_when_the_parent_is_killed_the_children_hand_back_and_go(project: Project) -> None:
    with project.start("start-server") as server:
        server.wait_until_ready()
        children = servers(project)
        id, _ = hold_one(project)
        server.signal(signal.SIGKILL)
        server.process.wait()
        eventually(all_gone(*children), what="the children going")
        assert servers(project) == {}
        state, _, runs, failures, crashes = execution(project, id)
        assert (state, runs, failures, crashes) == ("pending", 0, 0, 0)


@pytest.mark.parametrize("code", [7, 0])
def test_children_that_die_at_every_start_end_the_server_with_a_message(
    projects: Projects, code: int
) -> None:
    project = projects.make(tasks=f"import os\nos._exit({code})\n")
    done = project.run("start-server", within=60)
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert "Error: Process" in last
    assert "5 times in a row before it was ready" in last
    assert f"its exit code was {code}" in last


def test_a_mistake_in_a_module_is_exit_code_2_and_told_once(projects: Projects) -> None:
    done = projects.make(tasks="import nothing_of_the_kind\n").run("start-server")
    assert done.code == 2
    (line,) = [line for line in done.err.splitlines() if not line.startswith("{")]
    assert "Error: " in line
    assert "nothing_of_the_kind" in line


def test_an_unknown_queue_is_exit_code_2(project: Project) -> None:
    done = project.run("start-server", "--queue", "reprots")
    assert (done.code, done.err.count("'reprots'")) == (2, 1)


# ── Stopping ─────────────────────────────────────────────────────────────────────────────


def in_a_group(project: Project) -> Running:
    """As a shell, docker stop or systemd have it: one group of processes, all of it signalled."""
    return project.start("start-server", prefix=("setsid", "--wait"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_stops_it_gracefully(
    project: Project, number: signal.Signals
) -> None:
    with in_a_group(project) as outside:
        outside.wait_until_ready()
        children = servers(project)
        parent = json.loads(outside.wait_for("Serving"))["pid"]
        id, _ = hold_one(project)
        os.killpg(os.getpgid(parent), number)
        eventually(lambda: any(stopping(project)), what="the stop")
        (project.folder / "go").touch()
        assert outside.end() == 0
    assert all_gone(parent, *children)()
    assert execution(project, id)[0] == "completed"
    assert "Traceback" not in outside.err


def stopping(project: Project) -> list[bool]:
    with psycopg.connect(project.url) as conn:
        rows = conn.execute("select stopping from conductor.orchestrators").fetchall()
    return [row[0] for row in rows]


def test_a_long_task_is_handed_back_inside_the_shutdown_timeout(projects: Projects) -> None:
    project = projects.make(shutdown_timeout=5.0)
    with project.start("start-server") as server:
        server.wait_until_ready()
        children = servers(project)
        id, _ = hold_one(project)
        told = server.signal(signal.SIGTERM)
        assert server.end() == 4
        assert time.monotonic() - told < 5.0
        assert "handed back" in server.err
    assert all_gone(*children)()
    state, _, runs, failures, crashes = execution(project, id)
    assert (state, runs, failures, crashes) == ("pending", 0, 0, 0)


def test_a_second_signal_hands_back_at_once(projects: Projects) -> None:
    project = projects.make(shutdown_timeout=60.0)
    with in_a_group(project) as outside:
        outside.wait_until_ready()
        parent = json.loads(outside.wait_for("Serving"))["pid"]
        id, holder = hold_one(project)
        group = os.getpgid(parent)
        first = time.monotonic()
        os.killpg(group, signal.SIGTERM)
        os.killpg(group, signal.SIGTERM)
        eventually(lambda: time.monotonic() - first > 1.2)
        assert not is_gone(holder)
        os.killpg(group, signal.SIGTERM)
        assert outside.end(within=15) == 4
    assert execution(project, id)[0] == "pending"


def test_a_stalled_child_does_not_hold_up_the_stop(projects: Projects) -> None:
    project = projects.make(shutdown_timeout=4.0)
    with project.start("start-server") as server:
        server.wait_until_ready()
        id, stalled = hold_one(project)
        os.kill(stalled, signal.SIGSTOP)
        told = server.signal(signal.SIGTERM)
        assert server.end() == 4
        assert time.monotonic() - told < 4.0
        assert all_gone(stalled)()
    assert execution(project, id)[0] == "pending"


def test_a_stop_while_it_starts_is_obeyed(projects: Projects) -> None:
    tasks = 'import time\nfrom pathlib import Path\n(Path(__file__).parent / "slow").touch()\n'
    project = projects.make(tasks=f"{tasks}time.sleep(60)\n")
    with project.start("start-server") as server:
        eventually((project.folder / "slow").exists)
        told = server.signal(signal.SIGTERM)
        assert server.end() == 0
        assert time.monotonic() - told < 5.0
