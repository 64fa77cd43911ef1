"""Tasks that mean harm: only they themselves may suffer."""

from __future__ import annotations

import time
from uuid import UUID

from tests.faults.catalogue import scenario
from tests.faults.cluster import eventually
from tests.faults.evidence import Row
from tests.faults.server import Server
from tests.faults.stage import Stage

MODULES = ("plain", "hostile")
HARMLESS = {"forks", "leaks", "hooks"}
KINDS = (
    "raises", "exits", "interrupts", "unknown", "generator", "unprintable", "group", "nan",
    "infinity", "set", "object", "cycle", "deep", "nul", "surrogate", "huge", "huge number",
    "recursion", "memory", "forks", "leaks", "handlers", "hooks",
)  # fmt: skip


def _rows(stage: Stage) -> dict[UUID, Row]:
    return {row.id: row for row in stage.evidence().rows}


@scenario("hostile-values")
def hostile_values(stage: Stage) -> None:
    """Tasks that raise, sys.exit, raise any BaseException or an error whose __str__ raises; return
    NaN, a set, a cycle, NUL, 100 MB; fork, leak threads, change handlers and hooks.

    Each fails by itself, or succeeds where it may; its neighbours and the server do not notice.
    """
    server = stage.server(modules=MODULES, concurrency=20)
    beside = stage.client.invoke_many("neighbour", [{"name": "go"}] * 5)
    stage.wait_until_started(beside)
    ids = {kind: stage.client.invoke("value", {"kind": kind}) for kind in KINDS}
    stage.inject(len(ids))
    eventually(lambda: len(_rows(stage)) == len(ids) + 5, what="all rows")
    ended = ("completed", "failed")
    eventually(lambda: all(_rows(stage)[id].state in ended for id in ids.values()), 60, "the ends")
    stage.figure("works after", stage.wait_until_works(), 5)
    stage.release("go")
    stage.judge()
    rows = _rows(stage)
    _expect(stage, {kind: rows[id] for kind, id in ids.items()})
    stage.require(all(rows[id].claim == 1 for id in beside), "a neighbour was disturbed")
    stage.require(server.process.poll() is None, f"the server ended: {server.last_words[-300:]}")
    stage.require(server.is_ready(), "the server is not ready")
    moment = server.terminate()
    code = server.wait(40)
    assert server.ended is not None
    stage.figure("gone after", server.ended - moment, 25)
    stage.require(code == 0, f"exit code {code}")


def _expect(stage: Stage, rows: dict[str, Row]) -> None:
    for kind, row in rows.items():
        wanted = "completed" if kind in HARMLESS else "failed"
        if row.state == "completed" and kind in ("nan", "infinity", "set", "huge number"):
            wanted = "completed"  # where the encoder has an answer, it need not fail
        stage.require(row.state == wanted, f"{kind}: {row.state} ({row.error})")
        stage.require(row.state == "completed" or row.error is not None, f"{kind}: no error told")
        stage.require(row.claim == 1, f"{kind}: {row.claim} runs")
    stage.figure("failed", str(sum(row.state == "failed" for row in rows.values())))


def _supervise(stage: Stage, servers: list[Server], is_done: object, within: float) -> int:
    """Start another for each that ends, as systemd would; returns how many ended."""
    ended = 0
    until = time.monotonic() + within
    while not is_done():  # type: ignore[operator]
        if time.monotonic() > until:
            raise AssertionError(f"not done within {within:g} s")
        for server in list(servers):
            if server.process.poll() is not None:
                server.wait()
                servers.remove(server)
                servers.append(stage.server(modules=MODULES, concurrency=20, ready=False))
                ended += 1
        time.sleep(0.05)
    return ended


@scenario("hostile-deadly")
def hostile_deadly(stage: Stage) -> None:
    """Tasks that take their process down: os._exit, segfault, abort, SIGKILL; two supervised
    servers, with 20 neighbours beside.

    Each poison ends as failed, "Crashed", after max_crashes (3); its neighbours all complete,
    without a failure charged.
    """
    kinds = ["os._exit", "segfault", "abort", "kill"]
    kinds = kinds[: stage.choose("kinds", 4, 2)]
    servers = [stage.server(modules=MODULES, concurrency=20) for _ in range(2)]
    beside = stage.client.invoke_many("quick", [{"seconds": 0.5}] * 20)
    poison = [stage.client.invoke("deadly", {"kind": kind}) for kind in kinds]

    def over() -> bool:
        return not stage.cluster.one("select count(*) from conductor.live")

    began = time.monotonic()
    stage.inject(_supervise(stage, servers, over, len(kinds) * 5 * (stage.beat.rescue + 5)))
    stage.figure("poison ended after", time.monotonic() - began)
    stage.judge()
    rows = _rows(stage)
    for kind, id in zip(kinds, poison, strict=True):
        row = rows[id]
        told = f"{kind}: {row.state}, {row.error}, {row.crashes} crashes, {row.failures} failures"
        stage.require((row.state, row.error, row.failures) == ("failed", "Crashed", 0), told)
        runs = stage.evidence().runs_of([id])
        stage.require(len(runs) <= 4 + len(kinds), f"{kind} ran {len(runs)} times")
    stage.figure("runs of poison", str(len(stage.evidence().runs_of(poison))))
    stage.require(
        all(rows[id].state == "completed" and rows[id].failures == 0 for id in beside),
        "a neighbour suffered",
    )


@scenario("hostile-endless")
def hostile_endless(stage: Stage) -> None:
    """Tasks with a timeout of 0.5 s that loop for ever: in Python, in a sleep, waiting for a lock,
    or catching whatever is raised into them.

    Each fails as timed out within 10 s; its slot is replaced; the server works on.
    """
    server = stage.server(modules=MODULES, concurrency=5)
    kinds = ["python", "sleep", "waits", "catches"]
    began = time.monotonic()
    ids = [stage.client.invoke("loops", {"kind": kind}) for kind in kinds]
    stage.inject(len(ids))
    stage.notebook.note("fault", what="timeout", pid=server.pid, since=began, until=began + 60)
    eventually(lambda: all(_state(stage, id) == "failed" for id in ids), 40, "the ends")
    stage.figure("timed out after at most", time.monotonic() - began, 10)
    beside = stage.client.invoke_many("quick", [{"seconds": 0.2}] * 20)
    stage.settle()
    stage.require(stage.started(beside) == 20, "the neighbours did not run")
    rows = _rows(stage)
    errors = {str(rows[id].error) for id in ids}
    stage.require(errors == {"TimeoutError"}, f"errors: {errors}")
    stage.figure("stuck slots replaced", str(len(server.told("worker.stuck"))))
    stage.judge()
    moment = server.terminate()
    server.wait(40)
    assert server.ended is not None
    stage.figure("gone after", server.ended - moment, 25)
    stage.figure("exit code", str(server.code))


def _state(stage: Stage, id: UUID) -> str | None:
    found: str | None = stage.cluster.one(
        "select state::text from conductor.executions where id = %s", id
    )
    return found


@scenario("hostile-files")
def hostile_files(stage: Stage) -> None:
    """A task closes every file of its process, sockets and pipes included.

    The server recovers or ends, and is started again: nothing lost, all neighbours complete.
    """
    servers = [stage.server(modules=MODULES, concurrency=20)]
    with stage.outage():
        beside = stage.client.invoke_many("quick", [{"seconds": 1.0}] * 10)
        stage.client.invoke("closes")
        stage.inject()
        later = stage.client.invoke_many("quick", [{"seconds": 0.1}] * 10)

        def over() -> bool:
            return not stage.cluster.one("select count(*) from conductor.live")

        began = time.monotonic()
        ended = _supervise(stage, servers, over, 3 * stage.beat.rescue + 40)
        stage.figure("all done after", time.monotonic() - began)
        stage.figure("servers ended by it", str(ended))
    stage.require(stage.started([*beside, *later]) == 20, "not all ran")
    stage.judge()


@scenario("hostile-signals")
def hostile_signals(stage: Stage) -> None:
    """A task sets SIGTERM to be ignored, behind Python's back.

    It harms nobody but the next stop, which takes SIGINT; exit code 0.
    """
    server = stage.server(modules=MODULES)
    stage.client.invoke("ignores")
    stage.inject()
    stage.settle()
    stage.wait_until_works()
    server.process.send_signal(2)
    moment = time.monotonic()
    code = server.wait(40)
    assert server.ended is not None
    stage.figure("gone after", server.ended - moment, 2)
    stage.require(code == 0, f"exit code {code}")
    stage.judge()


@scenario("hostile-lock")
def hostile_lock(stage: Stage) -> None:
    """A task holds the interpreter's lock for longer than the heartbeat's timeout: a C call that
    keeps it, and a regular expression that explodes.

    As a stall: what ran there runs elsewhere within 20 s, its late writes are refused.
    """
    long = stage.beat.timeout + 3
    for kind in stage.choose("kinds", ("sleep", "regex"), ("sleep",)):
        victim = stage.server(modules=MODULES)
        ids = [stage.client.invoke("neighbour", {"name": f"go-{kind}"})]
        stage.wait_until_started(ids)
        other = stage.server(modules=MODULES, ready=False)
        other.wait_until_ready()
        since = time.monotonic()
        greedy = _only_to(stage, other, kind, long)
        stage.inject()
        moment = time.monotonic()
        seconds = stage.wait_until_all_run_again([*ids, greedy], moment, 40)
        stage.figure(f"{kind}: running again after", seconds, stage.beat.rescue + 2)
        stage.notebook.note(
            "fault", what="stall", pid=victim.pid, since=since, until=time.monotonic()
        )
        eventually(lambda v=victim: v.told("server.declared_dead"), 60, "noticing its death")
        stage.release(f"go-{kind}")
        stage.settle(keep="")
        for server in (victim, other):
            server.terminate()
            server.wait()
    stage.figure("late writes refused", str(stage.stale()))
    stage.judge()


def _only_to(stage: Stage, other: Server, kind: str, long: float) -> UUID:
    """Invoked while the other server stands still for a moment."""
    other.freeze()
    id = stage.client.invoke("greedy", {"kind": kind, "seconds": long})
    stage.wait_until_started([id])
    other.thaw()
    return id
