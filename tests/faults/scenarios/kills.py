"""Processes that die, and processes that stand still."""

from __future__ import annotations

import random
import time
from uuid import UUID

from tests.faults.catalogue import scenario
from tests.faults.cluster import eventually
from tests.faults.stage import HAS_STEPS, Stage

ORPHANS = 0.5  # seconds for which a statement of a dead process may still wait for a lock
NOTICE = 1.0  # seconds more than the heartbeat alone takes, in the short form's small figures


def again_within(stage: Stage) -> float:
    """The promise: 20 s with the default heartbeat."""
    return stage.beat.rescue + (NOTICE if stage.short else 0.0)


@scenario("kill")
def kill_fifty(stage: Stage) -> None:
    """SIGKILL a worker with 50 running, 20 prefetched, 5 of them returned and not recorded.

    Nothing lost; all 70 running again on another server within 20 s; no failure charged.
    """
    victim = stage.server(concurrency=50, prefetch=20)
    held = stage.client.invoke_many("hold_once", [None] * 45)
    unflushed = stage.client.invoke_many("until", [{"name": "go"}] * 5)
    stage.wait_until_started([*held, *unflushed])
    ahead = stage.client.invoke_many("hold_once", [None] * 20)
    claimed = "select count(*) from conductor.live where state = 'x'"
    eventually(lambda: stage.cluster.one(claimed) == 70, what="70 claimed")
    with stage.cluster.connect() as locker, locker.transaction():
        locker.execute("select from conductor.live where id = any (%s) for update", [unflushed])
        stage.release("go")
        eventually(lambda: sum(r.returned for r in stage.evidence().runs_of(unflushed)) == 5)
        time.sleep(0.1)  # they are in an exchange, or wait for the next
        moment = victim.kill()
        stage.inject()
        time.sleep(ORPHANS)
    stage.server(concurrency=50)
    seconds = stage.wait_until_all_run_again([*held, *unflushed, *ahead], moment, 30)
    stage.figure("running again after", seconds, again_within(stage))
    stage.judge()
    rows = stage.evidence().rows
    stage.require(all(row.failures == 0 for row in rows), "a failure was charged")
    stage.figure("failures charged", str(sum(row.failures for row in rows)))


@scenario("kill-random")
def kill_at_random(stage: Stage) -> None:
    """SIGKILL one of three servers every 3 to 10 s at random for a minute, under load.

    Nothing lost, one result each, recorded steps not run again.
    """
    seconds = stage.choose("seconds", 60, 10)
    pauses = stage.choose("seconds between kills", (3, 10), (1, 3))
    servers = [stage.server(concurrency=20, ready=False) for _ in range(3)]
    for server in servers:
        server.wait_until_ready()
    until = time.monotonic() + seconds
    task = "stepped" if HAS_STEPS else "quick"
    payload = (lambda: None) if HAS_STEPS else (lambda: {"seconds": random.uniform(0, 0.5)})
    with stage.load(task, payload, rate=40):
        while time.monotonic() < until:
            time.sleep(random.uniform(*pauses))
            victim = random.choice(servers)
            victim.kill()
            stage.inject()
            servers.remove(victim)
            servers.append(stage.server(concurrency=20, ready=False))
    stage.judge()


def _stalled(stage: Stage, *, after_return: bool) -> None:
    """Ten executions in a process that stands still until others have run them again."""
    victim = stage.server()
    ids = stage.client.invoke_many("until", [{"name": "go"}] * 10)
    stage.wait_until_started(ids)
    other = stage.server()
    if after_return:
        _return_and_freeze(stage, ids, victim)
    moment = victim.freeze()
    stage.inject()
    seconds = stage.wait_until_all_run_again(ids, moment, 30)
    stage.figure("running again after", seconds, again_within(stage))
    stage.release("go")
    moment = victim.thaw()
    eventually(lambda: victim.told("server.declared_dead"), what="noticing its death")
    stage.figure("noticed after", time.monotonic() - moment, stage.beat.interval + 1)
    eventually(lambda: stage.stale() >= len(ids), 20, "the refusal of ten late writes")
    stage.figure("late writes refused", str(stage.stale()))
    other.kill()
    stage.figure("works again after", stage.wait_until_works(after=moment), 30)
    stage.judge()


def _return_and_freeze(stage: Stage, ids: list[UUID], victim: object) -> None:
    """The bodies return while their rows are locked, so that nothing can be recorded yet."""
    with stage.cluster.connect() as locker, locker.transaction():
        locker.execute("select from conductor.live where id = any (%s) for update", [ids])
        stage.release("go")
        eventually(lambda: all(r.returned for r in stage.evidence().runs_of(ids)))
        time.sleep(0.05)
        victim.freeze()  # type: ignore[attr-defined]
        time.sleep(ORPHANS)


@scenario("stall")
def stall(stage: Stage) -> None:
    """SIGSTOP a worker with 10 running for longer than the timeout, then SIGCONT.

    Rescued within 20 s; the late writes are refused and counted; it notices and works on.
    """
    _stalled(stage, after_return=False)


@scenario("stall-returned")
def stall_returned(stage: Stage) -> None:
    """The same between the return of the bodies and the recording of their results.

    As above: the results that come late are refused, those of the second runs stand.
    """
    _stalled(stage, after_return=True)


@scenario("planted")
def planted(stage: Stage) -> None:
    """The token check is taken out of the server's finishing statement, and a worker stalled.

    The checker has to see it: results of claims that had been replaced.
    """
    victim = stage.server(modules=("plain", "untrue"))
    ids = stage.client.invoke_many("until", [{"name": "go"}] * 10)
    stage.wait_until_started(ids)
    stage.server()
    moment = victim.freeze()
    stage.wait_until_all_run_again(ids, moment, 30)
    victim.thaw()
    stage.inject()
    stage.release(f"go-{victim.pid}")
    eventually(lambda: not stage.cluster.one("select count(*) from conductor.live"), 40)
    stage.release("go")
    count = stage.judge()
    stage.figure("late results it reported", str(count.late))
    stage.require(count.late > 0, "the checker did not see the late results")
    if count.late:
        stage.line.count = None  # that it fails is what was to be shown
