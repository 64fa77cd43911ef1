"""SIGTERM at every moment: how long it takes, what it exits with, what becomes of the work."""

from __future__ import annotations

import random
import time
from uuid import UUID

from tests.faults.catalogue import scenario
from tests.faults.cluster import eventually
from tests.faults.server import Server
from tests.faults.stage import Stage

DONE, CUT_SHORT = 0, 4


def _gone(stage: Stage, server: Server, since: float, within: float, code: int) -> None:
    found = server.wait(within + 30)
    assert server.ended is not None
    stage.figure("gone after", server.ended - since, within)
    stage.figure("exit code", str(found))
    stage.require(found == code, f"exit code {found}, not {code}: {server.last_words[-300:]}")


@scenario("stop-idle")
def stop_idle(stage: Stage) -> None:
    """SIGTERM to a server that runs nothing.

    Gone within a second, exit code 0.
    """
    server = stage.server()
    stage.wait_until_works()
    moment = server.terminate()
    stage.inject()
    _gone(stage, server, moment, 1.0, DONE)
    stage.require(
        not stage.cluster.one("select count(*) from conductor.orchestrators"), "no farewell"
    )
    stage.judge()


@scenario("stop-busy")
def stop_busy(stage: Stage) -> None:
    """SIGTERM with 10 tasks of 5 s running, and more waiting.

    They finish, the rest is left to others, none runs twice; exit code 0.
    """
    seconds = stage.choose("seconds a task", 5.0, 2.0)
    server = stage.server(prefetch=5)
    ids = stage.client.invoke_many("quick", [{"seconds": seconds}] * 20)
    eventually(lambda: stage.started(ids) >= 10, what="the start of ten")
    moment = server.terminate()
    stage.inject()
    _gone(stage, server, moment, seconds + 1, DONE)
    stage.server()
    count = stage.judge()
    stage.require(count.runs == 20, f"20 executions ran {count.runs} times")


def _handed_back(stage: Stage, ids: list[UUID], moment: float, within: float = 2.0) -> None:
    """Running elsewhere so soon after the end of the process, with the attempt not counted."""
    seconds = stage.wait_until_all_run_again(ids, moment, 10)
    stage.figure("running elsewhere after", seconds, within)
    again = [r for r in stage.notebook.read().runs_of(ids) if r.start > moment]
    stage.require(all(r.claim == 1 for r in again), "the attempt was counted")


@scenario("stop-hour")
def stop_hour(stage: Stage) -> None:
    """SIGTERM with three tasks that would run for an hour and do not listen.

    Gone within shutdown_timeout, exit code 4; handed back, attempt not counted, running elsewhere
    within 2 s, without an overlap.
    """
    shutdown = stage.choose("shutdown_timeout", 25.0, 6.0)
    server = stage.server(shutdown=shutdown)
    ids = stage.client.invoke_many("until", [{"name": "go"}] * 3)
    stage.wait_until_started(ids)
    stage.server()
    moment = server.terminate()
    stage.inject()
    _gone(stage, server, moment, shutdown, CUT_SHORT)
    assert server.ended is not None
    _handed_back(stage, ids, server.ended - 2.0, 4.0)
    stage.release("go")
    stage.judge()


@scenario("stop-polite")
def stop_polite(stage: Stage) -> None:
    """SIGTERM with three tasks that would run for an hour and pass checkpoints.

    They leave at the next checkpoint, attempt not counted, running elsewhere within 2 s; exit 0.
    """
    server = stage.server()
    ids = stage.client.invoke_many("until", [{"name": "go", "polite": True}] * 3)
    stage.wait_until_started(ids)
    stage.server()
    moment = server.terminate()
    stage.inject()
    _gone(stage, server, moment, 2.0, DONE)
    _handed_back(stage, ids, moment)
    stage.release("go")
    stage.judge()


@scenario("stop-twice")
def stop_twice(stage: Stage) -> None:
    """SIGTERM with three tasks that do not listen, and a second one after 1.5 s.

    Handed back at once, exit code 4, no overlap.
    """
    server = stage.server()
    ids = stage.client.invoke_many("until", [{"name": "go"}] * 3)
    stage.wait_until_started(ids)
    stage.server()
    server.terminate()
    time.sleep(1.5)
    moment = server.terminate()
    stage.inject(2)
    _gone(stage, server, moment, 2.0, CUT_SHORT)
    _handed_back(stage, ids, moment, 3.0)
    stage.release("go")
    stage.judge()


@scenario("stop-starting")
def stop_starting(stage: Stage) -> None:
    """SIGTERM at a random moment of the start, with work waiting.

    Gone within 5 s, by exit code 0 (or by the signal, before Python has installed a handler);
    nothing lost, what it had claimed runs elsewhere.
    """
    ids = stage.client.invoke_many("quick", [{"seconds": 0.2}] * 50)
    longest = 0.0
    codes = []
    for _ in range(stage.choose("times", 20, 6)):
        server = stage.server(ready=False)
        time.sleep(random.uniform(0.0, 1.5))
        moment = server.terminate()
        stage.inject()
        codes.append(server.wait(30))
        assert server.ended is not None
        longest = max(longest, server.ended - moment)
    stage.figure("gone after at most", longest, 5.0)
    stage.figure("exit codes", " ".join(str(code) for code in sorted(set(codes))))
    stage.require(set(codes) <= {0, -15}, f"exit codes {codes}")
    stage.server()
    stage.settle()
    stage.require(stage.started(ids) == 50, "not all ran")
    stage.judge()


@scenario("stop-migrating")
def stop_migrating(stage: Stage) -> None:
    """SIGTERM while the first migration waits for somebody else's lock.

    Gone within 5 s, exit code 0; the schema is whole or absent; the next server installs it.
    """
    stage.cluster.run("drop schema conductor cascade")
    with stage.cluster.connect() as locker, locker.transaction():
        locker.execute("create schema conductor")  # not committed: a second one has to wait
        server = stage.server(ready=False)
        waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
        eventually(lambda: stage.cluster.one(waiting), what="a migration that waits")
        moment = server.terminate()
        stage.inject()
        _gone(stage, server, moment, 5.0, DONE)
        raise_rollback = locker.execute("select to_regclass('conductor.live') is null").fetchone()
        stage.require(raise_rollback == (True,), "half a schema")
        locker.execute("drop schema conductor")
    stage.server()
    stage.figure("works after", stage.wait_until_works(), 10)
    stage.judge()


@scenario("stop-dark")
def stop_dark(stage: Stage) -> None:
    """SIGTERM while Postgres is down, with three tasks running and their results to be recorded.

    Gone within shutdown_timeout, exit code 4; after the return of Postgres another runs them.
    """
    shutdown = stage.choose("shutdown_timeout", 25.0, 6.0)
    server = stage.server(shutdown=shutdown)
    ids = stage.client.invoke_many("until", [{"name": "go"}] * 3)
    stage.wait_until_started(ids)
    stage.cluster.stop("fast")
    stage.release("go")
    moment = server.terminate()
    stage.inject()
    _gone(stage, server, moment, shutdown, CUT_SHORT)
    stage.cluster.start()
    since = time.monotonic()
    stage.server()
    seconds = stage.wait_until_all_run_again(ids, since, 40)
    stage.figure("running again after the return", seconds, 2 * stage.beat.rescue)
    stage.judge()
