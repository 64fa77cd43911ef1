"""Durable: how fast one worker process works off executions that remember their steps, and parents
that wait for their children."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench.measures.columns import COST, Column, Table
from bench.measures.drain import drain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.peer import Peer, Settings
    from bench.stage import Stage

NAME: Final = "durable"
_COLUMNS: Final = (Column("rate", "executions/s"), *COST, Column("count", "queued"))
TABLES: Final = (
    Table("steps", "Durable, executions of five steps", _COLUMNS),
    Table("children", "Durable, parents that wait for ten children", _COLUMNS),
)
_FEWER: Final = {"steps": 4, "children": 50}  # than a drain has: each is so much more work


def measure(stage: Stage) -> None:
    every: tuple[Settings, ...] = ("default", "tuned")
    cases = [(table.case, settings) for table in TABLES for settings in every]
    stage.measure(NAME, cases, _durable, needs="durable")


def _durable(stage: Stage, peer: Peer, case: str, settings: Settings) -> Mapping[str, float | None]:
    return drain(stage, peer, case, settings, max(stage.plan.count // _FEWER[case], 1))
