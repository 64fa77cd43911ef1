"""The leader dies, stands still, leaves, or is not the only one: each tick happens once."""

from __future__ import annotations

import time
from datetime import timedelta

from tests.faults.catalogue import scenario
from tests.faults.cluster import eventually
from tests.faults.scenarios.kills import again_within
from tests.faults.server import Server
from tests.faults.stage import Stage

EVERY = timedelta(seconds=1)
MODULES = ("plain", "ticking")


def _fleet(stage: Stage, count: int = 3) -> list[Server]:
    servers = [stage.server(modules=MODULES, ready=False) for _ in range(count)]
    for server in servers:
        server.wait_until_ready()
    _wait_for_ticks(stage, 2)
    return servers


def _leads(stage: Stage) -> int | None:
    """The process that leads by the lease's row."""
    pid: int | None = stage.cluster.one(
        "select pid from conductor.leadership l join conductor.orchestrators o on o.id = l.leader"
    )
    return pid


def _leader(stage: Stage, servers: list[Server]) -> Server:
    pid = eventually(lambda: _leads(stage), what="a leader")
    return next(server for server in servers if server.pid == pid)


def _ticks(stage: Stage) -> int:
    return sum(run.tick is not None for run in stage.notebook.read().runs)


def _wait_for_ticks(stage: Stage, more: int, within: float = 30.0) -> None:
    had = _ticks(stage)
    eventually(lambda: _ticks(stage) >= had + more, within, f"{more} more ticks")


def _just_before_a_tick(stage: Stage) -> None:
    left: float = stage.cluster.one("select 1 - extract(epoch from clock_timestamp())::numeric % 1")
    time.sleep(float(left))


def _taken_over(stage: Stage, old: Server, since: float, within: float) -> None:
    eventually(lambda: _leads(stage) not in (None, old.pid), within + 20, "the takeover")
    stage.figure("taken over after", time.monotonic() - since, within)
    _wait_for_ticks(stage, 2, within + 10)


def _judge_ticks(stage: Stage) -> None:
    for server in stage.servers:
        if server.process.poll() is None:
            server.terminate()
            server.wait()
    stage.judge(EVERY, settled=False)


@scenario("leader-kill")
def leader_killed(stage: Stage) -> None:
    """SIGKILL the leader of three servers around a tick of a schedule of seconds.

    Each tick exactly once; another leads within 20 s.
    """
    servers = _fleet(stage)
    for _ in range(stage.choose("kills", 2, 1)):
        leader = _leader(stage, servers)
        _just_before_a_tick(stage)
        moment = leader.kill()
        stage.inject()
        _taken_over(stage, leader, moment, again_within(stage))
        servers.remove(leader)
    _judge_ticks(stage)


@scenario("leader-stall")
def leader_stalled(stage: Stage) -> None:
    """SIGSTOP the leader around a tick for longer than the lease, then SIGCONT.

    Each tick exactly once; another leads within 20 s; the old one does not think that it leads.
    """
    servers = _fleet(stage, 2)
    leader = _leader(stage, servers)
    _just_before_a_tick(stage)
    moment = leader.freeze()
    stage.inject()
    _taken_over(stage, leader, moment, again_within(stage))
    leader.thaw()
    eventually(lambda: leader.told("leadership.lost"), what="stepping down")
    _wait_for_ticks(stage, 3)
    stage.require(_leads(stage) != leader.pid, "the stalled one leads again")
    _judge_ticks(stage)


@scenario("leader-stop")
def leader_stopped(stage: Stage) -> None:
    """SIGTERM the leader around a tick.

    Each tick exactly once; another leads within a second; exit code 0.
    """
    servers = _fleet(stage, stage.choose("servers", 4, 2))
    for _ in range(len(servers) - 1):
        leader = _leader(stage, servers)
        _just_before_a_tick(stage)
        moment = leader.terminate()
        stage.inject()
        _taken_over(stage, leader, moment, 1.0)
        stage.require(leader.wait() == 0, f"exit code {leader.code}")
        servers.remove(leader)
    _judge_ticks(stage)


@scenario("leaders-two")
def two_leaders(stage: Stage) -> None:
    """The lease is taken by hand from the server that has just renewed it, again and again.

    Another takes it while the first still trusts itself: two schedulers, each tick exactly once.
    """
    servers = _fleet(stage, 2)
    renewed = "select renewed_at from conductor.leadership"
    for _ in range(stage.choose("times", 10, 4)):
        _leader(stage, servers)
        before = stage.cluster.one(renewed)
        eventually(lambda before=before: stage.cluster.one(renewed) != before, what="a renewal")
        stage.cluster.run("update conductor.leadership set leader = null")
        stage.inject()
    _wait_for_ticks(stage, 2)
    both = _led_at_once(servers)
    stage.figure("two led at once", f"{both} times")
    stage.require(both > 0, "never did two lead at once, so nothing was shown")
    _judge_ticks(stage)


def _led_at_once(servers: list[Server]) -> int:
    """How often one began to lead before another had ceased to."""
    marks = sorted(
        (line["timestamp"], line["event"])
        for server in servers
        for line in server.lines
        if line["event"] in ("leadership.gained", "leadership.lost")
    )
    leading = both = 0
    for _, event in marks:
        leading += 1 if event == "leadership.gained" else -1
        both += leading > 1
    return both
