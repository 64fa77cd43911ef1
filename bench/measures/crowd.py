"""Crowd: how much others in the same tables slow a drain: queued, finished, not yet due."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench.measures.columns import Column, Table
from bench.measures.drain import wait_until_finished
from bench.process import PeerFailed, PeerProcess
from bench.stage import DATABASE, OWN, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.peer import Ability, Peer, Settings
    from bench.stage import Stage

NAME: Final = "crowd"
_COLUMNS: Final = (
    Column("share", "% of the empty rate", 1),
    Column("rate", "executions/s"),
    Column("empty", "empty, executions/s"),
    Column("count", "worked off"),
    Column("crowd", "others"),
)
TABLES: Final = (
    Table("queued", "A crowd of queued executions", _COLUMNS),
    Table("finished", "A crowd of finished executions", _COLUMNS),
    Table("future", "A crowd of executions in the future", _COLUMNS),
)
AMONG: Final[dict[str, Settings]] = {
    "conductor": "default",
    "graphile-worker": "tuned",
    "bare": "default",
}
_NEEDS: Final[dict[str, Ability]] = {"finished": "keep", "future": "later"}
_TIMEOUT: Final = 300.0  # seconds, for one step
_CHUNK: Final = 20_000  # executions enqueued per call
_LATER: Final = 86_400.0  # seconds


def measure(stage: Stage) -> None:
    """Fill each database once, keep a copy, and measure on copies of that."""
    among = OWN if stage.plan.brief else AMONG
    for case in (table.case for table in TABLES):
        able = {
            peer.name: among[peer.name]
            for peer in stage.peers
            if peer.name in among and (case not in _NEEDS or _NEEDS[case] in peer.can)
        }
        stage.measure(NAME, [(case, "default"), (case, "tuned")], _crowd, among=able)
    for peer in stage.peers:
        for table in TABLES:
            stage.postgres.drop(_template(peer, table.case))


def _crowd(stage: Stage, peer: Peer, case: str, settings: Settings) -> Mapping[str, float | None]:
    """Both rates in one sample, the empty one first, so that drift hits both alike."""
    crowd = stage.plan.crowd
    count = max(crowd // 10, 1)
    if not stage.postgres.exists(_template(peer, case)):
        _fill(stage, peer, case, settings)
    empty = _rate(stage, peer, settings, count, count, None)
    queued = 0 if case == "queued" else count
    rate = _rate(stage, peer, settings, count, queued, _template(peer, case))
    return {
        "share": rate / empty * 100,
        "rate": rate,
        "empty": empty,
        "count": count,
        "crowd": crowd,
    }


def _rate(
    stage: Stage, peer: Peer, settings: Settings, count: int, queued: int, template: str | None
) -> float:
    """From the start of the first body to the end of the `count`-th, with `queued` more."""
    with stage.fresh_database(peer, template) as (url, meter):
        if queued:
            with PeerProcess(peer, url, "producer") as producer:
                _enqueue(producer, queued)
            meter.wait_until_alone()
        with PeerProcess(peer, url, "worker") as worker:
            worker.post("work", settings=settings, count=count)
            began: int = worker.expect("first", _TIMEOUT)["at"]
            ended: int = worker.expect("ran", _TIMEOUT)["at"]
            worker.expect("done", _TIMEOUT)
            worker.call("stop", _TIMEOUT)
    return count / (ended - began) * 1e9


def _fill(stage: Stage, peer: Peer, case: str, settings: Settings) -> None:
    crowd = stage.plan.crowd
    say(f"filling a database of {peer.name} with {crowd} {case}")
    with stage.fresh_database(peer) as (url, meter):
        with PeerProcess(peer, url, "producer") as producer:
            _enqueue(producer, crowd, _LATER if case == "future" else None)
        if case == "finished":
            _work_off(stage, peer, url, settings, crowd)
        meter.wait_until_alone()
        stage.keep_as(_template(peer, case))


def _enqueue(producer: PeerProcess, count: int, later: float | None = None) -> None:
    for start in range(0, count, _CHUNK):
        some = min(_CHUNK, count - start)
        if later is None:
            producer.call("enqueue_many", _TIMEOUT, task="noop", count=some)
        else:
            producer.call("enqueue_later", _TIMEOUT, task="noop", count=some, seconds=later)


def _work_off(stage: Stage, peer: Peer, url: str, settings: Settings, count: int) -> None:
    with PeerProcess(peer, url, "worker") as worker, stage.postgres.connect(DATABASE) as conn:
        worker.call("work", _TIMEOUT, settings=settings, count=count)
        worker.expect("ran", _TIMEOUT)
        wait_until_finished(peer, conn)
        ran = worker.call("stop", _TIMEOUT)["ran"]
    if ran != count:
        raise PeerFailed(f"{peer.name} ran {ran} bodies for {count} executions")


def _template(peer: Peer, case: str) -> str:
    return f"crowd_{case}_{peer.name}".replace("-", "_")
