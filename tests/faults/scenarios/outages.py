"""Postgres loses connections, restarts, is down, refuses."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import threading
import time
from pathlib import Path

from tests.faults.catalogue import scenario
from tests.faults.cluster import Cluster, eventually
from tests.faults.server import Server
from tests.faults.stage import RESUME, CannotRun, Stage

PARTS = ("heartbeat", "listener", "worker.default.pump1", "worker.default.pump2", "pool", "%")
PROMPT = 0.25  # seconds; by looking each second it would be half of one
LOUD = 3.0  # lines of log a second and component: one is promised, bursts of reconnecting are not


def _work(stage: Stage, rate: float = 50.0) -> object:
    return stage.load("quick", lambda: {"seconds": 0.02}, rate=rate)


def _resumed(stage: Stage, since: float, name: str = "resumed after") -> None:
    stage.figure(name, stage.wait_until_works(after=since), RESUME)


def _listens(stage: Stage) -> None:
    """It hears of new work at once again, and does not find it by looking now and then."""
    began = time.monotonic()
    until = began + 2 * stage.beat.interval + 5
    while (typical := statistics.median(stage.wait_until_works() for _ in range(9))) > PROMPT:
        if time.monotonic() > until:
            break
    stage.figure("then work begins after", typical, PROMPT)


def _calm(stage: Stage, server: Server, lost: int, seconds: float) -> None:
    """Not more than a line a second and component about it."""
    lines = server.told("database.lost")[lost:]
    components = {line["component"] for line in lines}
    for component in components:
        count = sum(line["component"] == component for line in lines)
        stage.require(
            count <= seconds + LOUD, f"{component} told {count} times in {seconds:.0f} s of it"
        )
    stage.figure("lines of log about it", str(len(lines)))


@scenario("backends")
def backends(stage: Stage) -> None:
    """Each of the server's backends is killed, then all of them, under load, again and again.

    Resumes within 10 s each time; nothing lost; the listener is alive again.
    """
    server = stage.server()
    slowest = 0.0
    with _work(stage), stage.outage():
        for part in PARTS * stage.choose("rounds", 5, 1):
            killed = stage.cluster.terminate(f"conductor {part}")
            stage.inject(killed)
            slowest = max(slowest, stage.wait_until_works())
            eventually(server.is_ready, 20, "readiness")
    stage.figure("resumed after at most", slowest, RESUME)
    stage.cluster.terminate("conductor listener")
    stage.inject()
    _listens(stage)
    stage.judge()


def _restarts(stage: Stage, how: str) -> None:
    server = stage.server()
    slowest = 0.0
    with _work(stage) as load, stage.outage():
        for _ in range(stage.choose("restarts", 10, 3)):
            time.sleep(0.5)
            stage.cluster.restart(how)
            stage.inject()
            slowest = max(slowest, stage.wait_until_works())
    stage.figure("resumed after at most", slowest, RESUME)
    stage.figure("replies lost to the client", str(load.fates["unknown"]))
    eventually(server.is_ready, RESUME, "readiness")
    _listens(stage)
    stage.judge()


@scenario("restart-fast")
def restart_fast(stage: Stage) -> None:
    """Postgres is restarted (fast) 10 times under load.

    Resumes within 10 s of each return; nothing lost, no rolled back work runs.
    """
    _restarts(stage, "fast")


@scenario("restart-immediate")
def restart_immediate(stage: Stage) -> None:
    """Postgres is stopped immediately, as by a crash, and started again, 10 times under load.

    Resumes within 10 s of each return; nothing lost, no rolled back work runs.
    """
    _restarts(stage, "immediate")


@scenario("down")
def down(stage: Stage) -> None:
    """Postgres is down for 30 s, with 10 tasks running and load from a client.

    Not ready until its return; resumes within 10 s; nothing lost, no hot loop, nobody is rescued
    for a silence that was Postgres' own.
    """
    seconds = stage.choose("seconds down", 30.0, 8.0)
    server = stage.server(concurrency=20)
    ids = stage.client.invoke_many("until", [{"name": "go"}] * 10)
    stage.wait_until_started(ids)
    with _work(stage), stage.outage():
        time.sleep(1)
        stage.cluster.stop("fast")
        stage.inject()
        began = time.monotonic()
        eventually(lambda: server.get("/readyz") == 503, 20, "unreadiness")
        stage.figure("unready after", time.monotonic() - began)
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
        stage.require(server.get("/healthz") == 200, "not alive while Postgres was down")
        _calm(stage, server, 0, time.monotonic() - began)
        stage.cluster.start()
        _resumed(stage, time.monotonic())
        eventually(server.is_ready, RESUME, "readiness")
    _listens(stage)
    stage.release("go")
    stage.judge()
    stage.require(stage.started(ids, claim=2) == 0, "what ran on was rescued from a living server")


@scenario("down-at-start")
def down_at_start(stage: Stage) -> None:
    """Postgres is down when the server starts, and comes 5 s later.

    It waits, alive and not ready, and works within 10 s of the return.
    """
    stage.cluster.stop("fast")
    server = stage.server(ready=False)
    stage.inject()
    eventually(lambda: server.told("database.lost"), what="trying")
    time.sleep(5)
    stage.require(server.process.poll() is None, f"it has ended: {server.last_words[-300:]}")
    _calm(stage, server, 0, time.monotonic() - server.began)
    stage.cluster.start()
    _resumed(stage, time.monotonic())
    stage.judge()


@scenario("read-only")
def read_only(stage: Stage) -> None:
    """Postgres is read-only by default for some seconds (default_transaction_read_only).

    It works on: its own sessions are set to write.
    """
    server = stage.server()
    with _work(stage), stage.outage():
        time.sleep(0.5)
        _set_read_only(stage.cluster, "on")
        stage.inject()
        began = time.monotonic()
        time.sleep(stage.choose("seconds", 20.0, 5.0))
        _set_read_only(stage.cluster, "off")
        _calm(stage, server, 0, time.monotonic() - began)
        _resumed(stage, time.monotonic())
        eventually(server.is_ready, RESUME, "readiness")
    stage.judge()


def _set_read_only(cluster: Cluster, value: str) -> None:
    with cluster.connect(options="-c default_transaction_read_only=off") as conn:
        conn.execute(f"alter system set default_transaction_read_only = {value}".encode())
        conn.execute("select pg_reload_conf()")


@scenario("failover")
def failover(stage: Stage) -> None:
    """Postgres is replaced by a standby that is read-only at first, and promoted 5 s later.

    It waits for the promotion, and resumes within 10 s of it; nothing lost.
    """
    proxy = stage.proxy()
    server = stage.server(url=stage.cluster.url_at(proxy.port))
    with stage.clusters.folder() as folder:
        with _work(stage), stage.outage():
            time.sleep(1)
            old = stage.cluster
            old.stop("fast")
            stage.clusters.copy(old.folder, folder)
            (folder / "data" / "standby.signal").touch()
            stage.clusters.own_all(folder)
            new = Cluster(old.binaries, folder)
            new.start()
            stage.replace_cluster(new)
            proxy.target = new.address
            stage.inject()
            began = time.monotonic()
            time.sleep(5)
            _calm(stage, server, 0, time.monotonic() - began)
            new.run("select pg_promote()")
            moment = time.monotonic()
            stage.move_client()
            _resumed(stage, moment)
        try:
            stage.judge()
        finally:
            new.stop("immediate")


@scenario("connections")
def connections(stage: Stage) -> None:
    """All of Postgres' connections are taken by others, and the server's own are killed.

    It waits without a hot loop, and resumes within 10 s of their end.
    """
    stage.open({"max_connections": "20", "superuser_reserved_connections": "3"})
    stage.cluster.run("create role app superuser login")
    stage.cluster.run("create role hog login")
    server = stage.server(url=stage.cluster.url_at(stage.cluster.port))
    with stage.outage():
        hogs = Hogs(stage.cluster)
        stage.cluster.run("alter system set reserved_connections = 0")
        hogs.start()
        stage.inject(stage.cluster.terminate())
        began = time.monotonic()
        time.sleep(stage.choose("seconds", 20.0, 6.0))
        hogs.stop()
        _calm(stage, server, 0, time.monotonic() - began)
        stage.figure("connections taken", str(hogs.most))
        _resumed(stage, time.monotonic())
        eventually(server.is_ready, RESUME, "readiness")
    stage.judge()


class Hogs:
    """Takes every connection that there is, as an ordinary role, as soon as it is free."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._over = threading.Event()
        self._held: list[object] = []
        self.most = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        eventually(lambda: self.most > 0, what="a connection taken")

    def stop(self) -> None:
        self._over.set()
        self._thread.join(10)

    def _run(self) -> None:
        import psycopg

        held = []
        while not self._over.is_set():
            try:
                held.append(psycopg.connect(self._cluster.url.replace("postgres@", "hog@")))
                self.most = max(self.most, len(held))
            except psycopg.OperationalError:
                self._over.wait(0.005)
        for each in held:
            each.close()


@scenario("password")
def password(stage: Stage) -> None:
    """The role's password is changed under a running server and its connections killed; after a
    while it is changed back.

    It goes on trying without a hot loop, and resumes within 10 s; the password is in no log.
    """
    cluster = stage.cluster
    cluster.run("set password_encryption = 'scram-sha-256'; create role app superuser login")
    cluster.run("alter role app password 'fault-secret-1'")
    rule = "host all app 127.0.0.1/32 scram-sha-256\n"
    hba = cluster.data / "pg_hba.conf"
    hba.write_text(rule + hba.read_text())
    cluster.run("select pg_reload_conf()")
    server = stage.server(url=cluster.url_at(cluster.port, "app:fault-secret-1"))
    with stage.outage():
        cluster.run("alter role app password 'fault-secret-2'")
        stage.inject(cluster.terminate())
        began = time.monotonic()
        time.sleep(stage.choose("seconds", 20.0, 6.0))
        stage.require(server.process.poll() is None, f"it ended: {server.last_words[-300:]}")
        _calm(stage, server, 0, time.monotonic() - began)
        cluster.run("alter role app password 'fault-secret-1'")
        _resumed(stage, time.monotonic())
        eventually(server.is_ready, RESUME, "readiness")
    stage.require("fault-secret" not in server.text, "the password is in the log")
    stage.judge()


@scenario("disk-full")
def disk_full(stage: Stage) -> None:
    """The disk that Postgres' data is on (a small tmpfs) fills up under load, and is freed.

    It waits (Postgres may crash, and is started again), and resumes within 10 s; nothing lost.
    """
    with stage.clusters.folder() as folder:
        _mount(folder, "400m")
        try:
            stage.clusters.own(folder)
            stage.open({"max_wal_size": "64MB", "min_wal_size": "32MB"}, folder)
            _fill_up(stage, folder)
        finally:
            stage.cluster.stop("immediate")
            subprocess.run(["umount", "-l", str(folder)], check=True)


def _mount(folder: Path, size: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0711", "tmpfs", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise CannotRun(f"it takes the right to mount a tmpfs ({done.stderr.strip()})")


def _fill_up(stage: Stage, folder: Path) -> None:
    server = stage.server()
    ballast = folder / "ballast"
    with stage.load("quick", lambda: {"seconds": 0.01}, rate=100), stage.outage():
        time.sleep(1)
        _fill(ballast)
        stage.inject()
        began = time.monotonic()
        time.sleep(stage.choose("seconds", 20.0, 6.0))
        full = shutil.disk_usage(folder).free
        ballast.unlink()
        if stage.cluster.has_ended():
            stage.cluster.start()
        eventually(lambda: _writes(stage.cluster), 60, "Postgres' own recovery")
        moment = time.monotonic()
        stage.figure("bytes left", str(full))
        _calm(stage, server, 0, moment - began)
        _resumed(stage, moment)
    stage.judge()


def _fill(ballast: Path) -> None:
    """As much as there is room for."""
    file = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    block = bytes(1 << 20)
    with contextlib.suppress(OSError):
        while os.write(file, block):
            pass
    os.close(file)


def _writes(cluster: Cluster) -> bool:
    import psycopg

    try:
        cluster.run("create table if not exists proof (n int)")
    except psycopg.Error:
        return False
    return True
