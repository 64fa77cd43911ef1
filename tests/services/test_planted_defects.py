"""Proof that the interleaving test (tests/store/test_interleaving.py) can fail.

Each defect planted in a statement must be found within the thousand seeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from conductor_cli.database import Statement
from conductor_cli.holding import Holding
from conductor_cli.store import claims, definitions, executions, fleet
from tests.support.interleaving.drama import PUMPS, Broken, Theatre, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from uuid import UUID

    from conductor_cli.database import Connection, Database

SEEDS: Final = 1000

DEFECTS: Final = {
    "results are taken whatever their token": (
        claims, "EXCHANGE",
        "and l.token = o.token and l.state::text = 'x'\n          and l.flags & ~9 = 0",
        "",
    ),
    "an end overlooks a cancel": (
        claims, "EXCHANGE", "case when flags & 1 <> 0 then 'k' else ending end", "ending",
    ),
    "a claim is not counted": (claims, "CLAIM", "runs = runs + 1", "runs = runs"),
    "claims are given back whatever their token": (
        claims, "REQUEUE",
        "and l.token = o.token\n            and l.state::text = 'x'", "",
    ),
    "what is to be cancelled is given back": (claims, "REQUEUE", "and l.flags & 1 = 0", ""),
    "a late end counts as recorded": (claims, "INSPECT", "and h.token = o.token", ""),
    "what is not due is promoted": (
        claims, "PROMOTE", "state in ('s', 'w') and run_at <= conductor.now()",
        "state in ('s', 'w')",
    ),
    "a server takes back what it runs": (
        claims, "RECONCILE", "and token = any (%(lost)s)", "and token = any (%(lost)s) is not null",
    ),
    "a lost reply is never reconciled": (claims, "UNKNOWN", "owner = %(owner)s", "false"),
    "a tick is made without compare-and-set": (
        definitions, "TICK", "and next_at = %(expected)s", "",
    ),
    "a rescue leaves the old token": (
        fleet, "RESCUE", "owner = null, token = null", "owner = null",
    ),
    "a rescue judges too early": (
        fleet, "RESCUE", ">= timeout * interval '1 second'", ">= timeout * interval '0.5 second'",
    ),
    "a rescue charges nobody": (fleet, "RESCUE", "crashes = l.crashes + h.charge", "crashes = -1"),
    "a lease is taken before it ends": (
        fleet, "BEAT", "+ %(lease)s * interval '1 second' <= conductor.now()",
        "+ %(lease)s * interval '0.5 second' <= conductor.now()",
    ),
    "leaving takes from others": (fleet, "LEAVE", "where owner = %(id)s and", "where"),
    "an invocation is repeated blindly": (
        executions, "ENQUEUE", "%(recheck)s", "%(recheck)s and false",
    ),
    "a retry forgets the attempts": (
        executions, "RETRY", "conductor.now(), created_at, timeout, runs,",
        "conductor.now(), created_at, timeout, 0,",
    ),
}  # fmt: skip


# Where the rarer ones were first found: the search begins there, to be quick.
FIRST: Final = {
    "a late end counts as recorded": 844,
    "an invocation is repeated blindly": 254,
    "results are taken whatever their token": 764,
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_found(
    database: Database, monkeypatch: pytest.MonkeyPatch, defect: str
) -> None:
    room, name, was, becomes = DEFECTS[defect]
    sound: Statement[Any] = getattr(room, name)
    monkeypatch.setattr(room, name, planted(sound, was, becomes))
    first = FIRST.get(defect, 0)
    with opened(database, monkeypatch) as theatre:
        seeds = (*range(first, SEEDS), *range(first))
        assert any(is_broken(theatre, seed) for seed in seeds), f"not found by {SEEDS} seeds"


def test_outcomes_that_are_kept_twice_after_a_failure_are_found(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = Holding.failed
    monkeypatch.setattr(
        Holding, "failed", lambda self, plan, waker, settled: sound(self, plan, waker, [])
    )
    with opened(database, monkeypatch) as theatre:
        seeds = (*range(380, SEEDS), *range(380))
        assert any(is_broken(theatre, seed) for seed in seeds), f"not found by {SEEDS} seeds"


def test_a_server_that_takes_back_what_others_run_is_found(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UNKNOWN", "RECONCILE"):
        sound: Statement[Any] = getattr(claims, name)
        monkeypatch.setattr(claims, name, planted(sound, "owner = %(owner)s and", ""))
    with opened(database, monkeypatch) as theatre:
        assert any(is_broken(theatre, seed) for seed in range(SEEDS)), "not found"


def test_a_worker_that_takes_back_what_its_other_pump_has_just_claimed_is_found(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = claims.reconcile

    def asks_once(
        conn: Connection, owner: UUID, queue: str, known: Callable[[], Collection[int]]
    ) -> int:
        before = list(known())
        return sound(conn, owner, queue, lambda: before)

    monkeypatch.setattr(claims, "reconcile", asks_once)
    with opened(database, monkeypatch, PUMPS) as theatre:
        assert any(is_broken(theatre, seed) for seed in range(SEEDS)), "not found"
        monkeypatch.setattr(claims, "RECONCILE", planted(claims.RECONCILE, ", token = null", ""))
        monkeypatch.setattr(claims, "INSPECT", planted(claims.INSPECT, "'released'", "'recorded'"))
        seeds = (seed for seed in range(SEEDS) if is_broken(theatre, seed, "more results accepted"))
        assert next(seeds, None) is not None, "not found"


def planted(sound: Statement[Any], was: str, becomes: str) -> Statement[Any]:
    assert was in sound.sql, "the statement has changed: plant the defect anew"
    return Statement(sound.row, sound.sql.replace(was, becomes))


def is_broken(theatre: Theatre, seed: int, how: str = "") -> bool:
    try:
        theatre.play(seed)
    except Broken as broken:
        return how in str(broken)
    return False
