"""Clocks that are wrong: of the daemon, of the database; nights that have an hour too many."""

from __future__ import annotations

import os
import time

from tests.faults.catalogue import scenario
from tests.faults.scenarios.leaders import MODULES, judge_ticks
from tests.faults.server import VICTIMS
from tests.faults.stage import Stage

DAY = 86400.0


def _shifted(seconds: float) -> dict[str, str]:
    places = [str(VICTIMS / "shifted"), str(VICTIMS), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, places)), "FAULTS_SHIFT": str(seconds),
    }  # fmt: skip


def _off_by(stage: Stage, seconds: float) -> None:
    """One server with a right clock, two whose wall clock (as Python sees it) is off."""
    servers = [
        stage.server(modules=MODULES, env=None if n == 0 else _shifted(seconds), ready=False)
        for n in range(3)
    ]
    for server in servers:
        server.wait_until_ready()
    stage.inject(2)
    with stage.load("quick", lambda: {"seconds": 0.02}, rate=30):
        later = stage.client.invoke("quick", None, delay=3)
        at = time.monotonic()
        time.sleep(stage.choose("seconds", 30.0, 5.0) / 2)
        servers[0].kill()  # only the wrong ones are left, to lead and to rescue
        stage.inject()
        time.sleep(stage.beat.rescue + stage.choose("seconds", 30.0, 5.0) / 2)
    for server in servers[1:]:
        stage.require(len(server.told("clock.offset")) > 0, "nobody warned of the clock")
        stage.require(not server.told("server.declared_dead"), "a living server was declared dead")
    delay = min(r.start for r in stage.notebook.read().runs_of([later])) - at
    stage.figure("a delay of 3 s took", delay, 4.5)
    stage.require(delay >= 2.9, f"a delay of 3 s took {delay:.1f} s")
    judge_ticks(stage)


@scenario("clock-ahead")
def clock_ahead(stage: Stage) -> None:
    """The wall clock of two of three daemons is a day ahead (Python's view of it, replaced at the
    start of the process); the third is killed.

    Each tick once, delays as asked, warned of, no living server taken for dead.
    """
    _off_by(stage, DAY)


@scenario("clock-behind")
def clock_behind(stage: Stage) -> None:
    """The same, a day behind.

    As above.
    """
    _off_by(stage, -DAY)


def _set_clock(stage: Stage, body: str) -> None:
    stage.cluster.run(
        "create or replace function conductor.now() returns timestamptz language sql stable "
        f"parallel safe return {body}"  # type: ignore[arg-type]
    )


@scenario("clock-database")
def clock_database(stage: Stage) -> None:
    """The database's clock jumps a day ahead and later back (conductor.now(), replaced), under two
    servers and load.

    Work goes on within 10 s of each jump; nothing lost, one result each, no tick twice.
    """
    for _ in range(2):
        stage.server(modules=MODULES)
    slowest = 0.0
    with stage.load("quick", lambda: {"seconds": 0.02}, rate=30), stage.outage():
        for body in ("statement_timestamp() + interval '1 day'", "statement_timestamp()"):
            time.sleep(stage.choose("seconds", 10.0, 3.0))
            _set_clock(stage, body)
            stage.inject()
            slowest = max(slowest, stage.wait_until_works())
        time.sleep(stage.beat.interval)
    stage.figure("works after at most", slowest, 10)
    stage.cluster.run("update conductor.schedules set next_at = null")
    stage.judge()
    ticks = [row.tick for row in stage.evidence().rows if row.tick]
    stage.figure("ticks", str(len(ticks)))
    stage.require(len(ticks) == len(set(ticks)), "a tick twice")
