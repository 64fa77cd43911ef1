"""Much of what is not to be done now, and old snapshots: what is to be done is as quick as ever."""

from __future__ import annotations

import statistics
import threading
import time
from uuid import UUID

from tests.faults.catalogue import scenario
from tests.faults.cluster import eventually
from tests.faults.stage import Stage

BASELINE = 2.0  # times the baseline's time may be taken, of figures that vary by half


def _latencies(stage: Stage, rate: float, seconds: float) -> list[float]:
    """From the commit of each invocation to its start, at this rate; seconds, in order."""
    with Producer(stage, rate) as producer:
        time.sleep(seconds)
    stage.settle()
    starts = {run.id: run.start for run in stage.notebook.read().runs}
    return [max(0.0, starts[id] - at) for id, at in producer.made]


class Producer:
    """Invokes ten at a time, at this rate in all."""

    def __init__(self, stage: Stage, rate: float) -> None:
        self._stage, self._rate = stage, rate
        self.made: list[tuple[UUID, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Producer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join(30)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._over.is_set():
            ids, at = self._stage.client.invoke_batch("quick", 10)
            self.made += [(id, at) for id in ids]
            due = max(due + 10 / self._rate, time.monotonic() - 1)
            self._over.wait(max(0.0, due - time.monotonic()))


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


@scenario("snapshot")
def snapshot(stage: Stage) -> None:
    """A snapshot is held open elsewhere for 5 minutes while 500 executions a second go through.

    The exchange with the database takes, in its slowest hundredth, at most 5 times as long.
    """
    seconds = stage.choose("seconds held", 300.0, 30.0)
    free = stage.choose("seconds free", 60.0, 6.0)
    stage.open({"log_min_duration_statement": "0", "log_parameter_max_length": "0"})
    stage.server()
    before = _latencies(stage, 500, free)
    base = _exchanges(stage)
    with stage.cluster.connect() as holder, holder.transaction():
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select count(*) from conductor.live")
        stage.inject()
        held = _latencies(stage, 500, seconds)
    taken = _exchanges(stage)
    last = taken[len(taken) * 2 // 3 :]
    stage.figure("executions a second", f"{len(held) / seconds:.0f}")
    stage.figure("exchange median free", statistics.median(base) * 1000, unit=" ms")
    stage.figure("held, last third", statistics.median(last) * 1000, unit=" ms")
    stage.figure("exchange p99 free", _p99(base) * 1000, unit=" ms")
    stage.figure("exchange p99 held, last third", _p99(last) * 1000, _p99(base) * 5000, unit=" ms")
    stage.figure("start p99 free", _p99(before) * 1000, unit=" ms")
    stage.figure("start p99 held", _p99(held[len(held) * 2 // 3 :]) * 1000, unit=" ms")
    stage.judge()


def _exchanges(stage: Stage) -> list[float]:
    """Seconds that each exchange since the last call took, by Postgres' log."""
    log = stage.cluster.folder / "log"
    text = log.read_text(errors="replace")
    log.write_text("")  # opened for appending: it goes on from the start
    found = []
    for chunk in text.split("duration: ")[1:]:
        head, _, rest = chunk.partition(" ms")
        if "End one batch and claim the next" in rest[:200] and " execute " in rest[:60]:
            found.append(float(head) / 1000)
    return found


READY = 1000


def _drain(stage: Stage) -> float:
    """Seconds that a thousand ready ones take, from their commit to the end of the last."""
    ids, began = stage.client.invoke_batch("quick", READY)
    wanted = set(ids)

    def done() -> bool:
        return sum(run.id in wanted and run.returned for run in stage.notebook.read().runs) == READY

    eventually(done, 120, f"{READY} done")
    ends = [r.end for r in stage.notebook.read().runs_of(wanted) if r.end is not None]
    return max(0.001, max(ends) - began)


def _crowded(stage: Stage, statement: str, count: int, name: str) -> None:
    """The same drain without the crowd and with it, several times each; their medians."""
    server = stage.server()
    rounds = 5
    _drain(stage)
    alone = statistics.median(_drain(stage) for _ in range(rounds))
    server.terminate()
    server.wait()
    with stage.cluster.connect() as conn:
        conn.execute(statement.replace("COUNT", str(count)).encode())
        conn.execute("analyze conductor.live, conductor.history")
    stage.inject()
    stage.server()
    _drain(stage)
    crowded = statistics.median(_drain(stage) for _ in range(rounds))
    stage.figure(f"{READY} beside {name}", crowded, BASELINE * alone + 0.05)
    stage.figure("alone", alone)
    with stage.cluster.connect() as conn:
        conn.execute("delete from conductor.live where task in ('later', 'foreign')")
        conn.execute("delete from conductor.history where task = 'earlier'")
    stage.judge()


LIVE = """
insert into conductor.live (id, run_at, created_at, rank, state, queue, task, payload)
select conductor.uuid7(), conductor.now() {moment}, conductor.now(), {rank}, '{state}', 'default',
    '{task}', '{{}}'
from generate_series(1, COUNT)
"""
FINISHED = """
insert into conductor.history (id, seq, run_at, created_at, started_at, finished_at, expires_at,
    runs, failures, crashes, rank, state, queue, task, payload, result)
select conductor.uuid7(), n, conductor.now(), conductor.now(), conductor.now(), conductor.now(),
    conductor.now() + interval '7 days', 1, 0, 0, 0, 'c', 'default', 'earlier', '{}', '1'
from generate_series(1, COUNT) n
"""


def _live(moment: str, rank: int, state: str, task: str) -> str:
    return LIVE.format(moment=moment, rank=rank, state=state, task=task)


@scenario("crowd-future")
def crowd_future(stage: Stage) -> None:
    """A million executions of higher priority that are due in a day.

    A thousand ready ones go through at the speed they have alone.
    """
    count = stage.choose("executions", 1_000_000, 100_000)
    _crowded(stage, _live("+ interval '1 day'", -5, "s", "later"), count, f"{count} future")


@scenario("crowd-finished")
def crowd_finished(stage: Stage) -> None:
    """A million executions that have ended.

    A thousand ready ones go through at the speed they have alone.
    """
    count = stage.choose("executions", 1_000_000, 100_000)
    _crowded(stage, FINISHED, count, f"{count} finished")


@scenario("crowd-foreign")
def crowd_foreign(stage: Stage) -> None:
    """A hundred thousand ready executions, ahead in the queue, of a task that no server serves.

    A thousand ready ones behind them go through at the speed they have alone.
    """
    count = stage.choose("executions", 100_000, 20_000)
    _crowded(stage, _live("- interval '1 hour'", -5, "r", "foreign"), count, f"{count} foreign")
