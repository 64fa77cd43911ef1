"""A deploy: two versions at once, migrations under load, migrators killed at each statement."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

from tests.faults.catalogue import scenario
from tests.faults.cluster import eventually
from tests.faults.server import VICTIMS, Server
from tests.faults.stage import Stage

ROOT = Path(__file__).parents[3]
EVERY = timedelta(seconds=1)
MODULES = ("plain", "ticking")
STALL = 3.0  # seconds that a migration may hold work up
NEWER = 3  # the exit code of a program for which the database is too new
ADDITIVE = (
    "alter table conductor.live add column later text;",
    "alter table conductor.history add column later text;",
    "create table conductor.later (id uuid primary key);",
    "create index on conductor.live (later) where later is not null;",
)
GATE = "select pg_sleep(60) where to_regclass('public.gate') is not null;"


class Newer:
    """The package as it is, with one more migration."""

    def __init__(self, stage: Stage, statements: Sequence[str], *, breaking: bool) -> None:
        self.folder = stage.folder / "newer"
        for part in ("conductor_cli", "migrations"):
            shutil.copytree(
                ROOT / part, self.folder / part, ignore=shutil.ignore_patterns("__pycache__")
            )
        self._breaking = breaking
        self._stage = stage
        self.write(statements)

    @property
    def env(self) -> dict[str, str]:
        return {"PYTHONPATH": os.pathsep.join([str(self.folder), str(VICTIMS)])}

    def write(self, statements: Sequence[str]) -> None:
        header = f"-- breaking: {str(self._breaking).lower()}\n-- why: a newer version\n\n"
        file = self.folder / "migrations" / "0900_come_later.sql"
        file.write_text(header + "\n".join(statements) + "\n")

    def migrate(self) -> subprocess.Popen[bytes]:
        """The command, under way."""
        settings = self._stage.folder / "newer" / "conductor.toml"
        settings.write_text('[tasks]\nmodules = ["plain", "ticking"]\n')
        env = {
            **os.environ, **self.env, "CONDUCTOR_DATABASE_URL": self._stage.cluster.url,
            "FAULTS_EVIDENCE": str(self._stage.notebook.path),
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-m", "conductor_cli", "migrate"], cwd=self.folder, env=env,
            stdout=subprocess.DEVNULL, stderr=(self.folder / "log").open("wb"),
        )  # fmt: skip


def _finish(stage: Stage, migrator: subprocess.Popen[bytes]) -> None:
    code = migrator.wait(90)
    log = (stage.folder / "newer" / "log").read_text()
    stage.require(code == 0, f"conductor migrate: exit code {code}: {log[-300:]}")


def _longest_stall(stage: Stage, since: float, until: float) -> float:
    """The longest time in which nothing began, while the load went on."""
    starts = sorted(r.start for r in stage.notebook.read().runs if since <= r.start <= until)
    return max((b - a for a, b in pairwise([since, *starts, until])), default=until - since)


def _stop(stage: Stage, *servers: Server) -> None:
    for server in servers:
        server.terminate()
        stage.require(server.wait() == 0, f"{server.folder.name} did not stop cleanly")


@scenario("deploy-rolling")
def rolling(stage: Stage) -> None:
    """A rolling deploy under load: newer servers join, upgrade the schema and replace older ones,
    one of which restarts in the middle of it.

    Nothing lost, no failure; each tick once; work held up for 3 s at most.
    """
    newer = Newer(stage, ADDITIVE, breaking=False)
    old = [stage.server(modules=MODULES) for _ in range(2)]
    with stage.load(rate=30.0) as load:
        stage.wait_until_works()
        since = time.monotonic()
        new = [stage.server(modules=MODULES, env=newer.env)]
        stage.inject()
        _stop(stage, old[0])
        old[0] = stage.server(modules=MODULES)
        new.append(stage.server(modules=MODULES, env=newer.env))
        _stop(stage, *old)
        time.sleep(2)
        until = time.monotonic()
    stage.figure("longest stall", _longest_stall(stage, since, until), STALL)
    stage.require(load.fates["unknown"] == 0, f"invokes failed: {load.fates}")
    stage.settle(keep="second")
    _stop(stage, *new)
    stage.judge(EVERY, settled=False)


@scenario("deploy-breaking")
def breaking(stage: Stage) -> None:
    """A breaking migration under load, while two older servers run and a long transaction of
    somebody else's holds one of the tables.

    They drain and exit with code 3; newer ones do what is left; each tick once; work held up for
    3 s at most until then.
    """
    newer = Newer(stage, ADDITIVE[:1], breaking=True)
    old = [stage.server(modules=MODULES) for _ in range(2)]
    with stage.load(rate=30.0):
        stage.wait_until_works()
        holder = stage.enter(stage.cluster.connect())
        holder.execute("begin")
        holder.execute("select count(*) from conductor.live")
        since = time.monotonic()
        migrator = newer.migrate()
        stage.inject()
        time.sleep(stage.choose("seconds of the long transaction", 8.0, 4.0))
        held = _longest_stall(stage, since, time.monotonic())
        holder.execute("rollback")
        _finish(stage, migrator)
        moment = time.monotonic()
        codes = [server.wait(30) for server in old]
        stage.figure("drained and gone after", time.monotonic() - moment, 5.0)
        stage.require(codes == [NEWER] * 2, f"exit codes {codes}")
        new = [stage.server(modules=MODULES, env=newer.env) for _ in range(2)]
        stage.wait_until_works()
    stage.figure("longest stall", held, STALL)
    refused = stage.server(modules=MODULES, ready=False)
    stage.require(refused.wait() == NEWER, "an old server that starts afterwards is let in")
    stage.settle(keep="second")
    _stop(stage, *new)
    stage.judge(EVERY, settled=False)


@scenario("deploy-killed")
def killed(stage: Stage) -> None:
    """SIGKILL `conductor migrate` before each statement of a migration and after the last, with a
    server at work.

    No half state after any of them; the next migrator completes within 20 s; nothing lost.
    """
    newer = Newer(stage, (), breaking=False)
    server = stage.server(modules=MODULES)
    before = _schema(stage)
    stage.cluster.run("create table public.gate ()")
    with stage.load(rate=20.0):
        for place in range(len(ADDITIVE) + 1):
            newer.write([*ADDITIVE[:place], GATE, *ADDITIVE[place:]])
            migrator = newer.migrate()
            eventually(lambda: _sleeps(stage), what="the migrator at its statement")
            migrator.send_signal(signal.SIGKILL)
            migrator.wait()
            stage.inject()
            eventually(lambda: not _sleeps(stage), what="the end of its session")
            stage.require(_schema(stage) == before, f"half a schema, killed at {place}")
        stage.cluster.run("drop table public.gate")
        moment = time.monotonic()
        _finish(stage, newer.migrate())
        stage.figure("completed after", time.monotonic() - moment, 20.0)
        stage.require(_schema(stage) != before, "the last one changed nothing")
        stage.wait_until_works()
    stage.settle(keep="second")
    _stop(stage, server)
    stage.judge(EVERY, settled=False)


def _sleeps(stage: Stage) -> bool:
    return bool(
        stage.cluster.one("select count(*) from pg_stat_activity where wait_event = 'PgSleep'")
    )


def _schema(stage: Stage) -> object:
    return stage.cluster.run(
        """
        select attrelid::regclass::text || '.' || attname from pg_attribute
        join pg_class c on c.oid = attrelid
        where c.relnamespace = 'conductor'::regnamespace and attnum > 0 and not attisdropped
        union all select name from conductor.migrations order by 1
        """
    )
