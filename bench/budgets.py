"""The budgets that the project set itself, held against the figures of one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.report import CONDUCTOR, FLOOR, medians

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.stage import Stage

_STRONGEST: Final = "graphile-worker"  # the peer, tuned, that the drain is measured by


@dataclass(frozen=True)
class Verdict:
    """One budget: what was found, what it must be; `value` None when the run does not tell."""

    budget: str
    value: float | None
    limit: float
    at_least: bool

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def verdicts(stage: Stage) -> list[Verdict]:
    """Every budget that this run can say something about."""
    look = _Figures(stage)
    found = [
        Verdict("drain, no-op: x graphile-worker tuned", look.drain(), 1.0, at_least=True),
        Verdict("drain, 1 ms sleep: x ten bare threads", look.sleep(), 0.9, at_least=True),
        Verdict("bulk enqueue: x best peer", look.bulk(), 2.0, at_least=True),
        Verdict("single enqueue: x bare insert", look.single(), 0.9, at_least=True),
        Verdict("latency p50, ms", look.own("latency", "idle worker", "p50_ms"), 2.5, False),
        Verdict("latency p99, ms", look.own("latency", "idle worker", "p99_ms"), 8.0, False),
        Verdict("latency p50: x fastest peer", look.latency(), 1.0, at_least=False),
        Verdict("idle statements/s", look.own("idle", "worker", "statements_s"), 0.5, False),
        Verdict("idle worker CPU, %", look.own("idle", "worker", "client_percent"), 0.3, False),
        Verdict("idle worker RSS, MiB", look.own("idle", "worker", "rss_mib"), 60.0, False),
    ]
    return [verdict for verdict in found if verdict.value is not None]


def text(stage: Stage) -> str:
    """The budgets as a list; empty when Conductor was not measured."""
    found = verdicts(stage)
    if not found:
        return ""
    lines = ["## Budgets\n"]
    for verdict in found:
        word = "met" if verdict.met else "MISSED"
        sign = ">=" if verdict.at_least else "<="
        lines.append(f"- {word}: {verdict.budget}: {verdict.value:.2f} ({sign} {verdict.limit:g})")
    return "\n".join(lines) + "\n"


class _Figures:
    """Looks up medians; None wherever one of the two sides was not measured."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def own(self, measure: str, case: str, key: str) -> float | None:
        return self._one(measure, case, key, CONDUCTOR)

    def drain(self) -> float | None:
        return _ratio(
            self.own("drain", "noop", "rate"),
            self._one("drain", "noop", "rate", _STRONGEST, "tuned"),
        )

    def sleep(self) -> float | None:
        return _ratio(
            self.own("drain", "sleep", "rate"), self._one("drain", "sleep", "rate", FLOOR)
        )

    def bulk(self) -> float | None:
        return _ratio(
            self.own("enqueue", "bulk", "rate"), self._peers("enqueue", "bulk", "rate", max)
        )

    def single(self) -> float | None:
        return _ratio(
            self.own("enqueue", "single", "rate"), self._one("enqueue", "single", "rate", FLOOR)
        )

    def latency(self) -> float | None:
        key = "p50_ms"
        return _ratio(
            self.own("latency", "idle worker", key),
            self._peers("latency", "idle worker", key, min),
        )

    def _one(
        self, measure: str, case: str, key: str, peer: str, settings: str = "default"
    ) -> float | None:
        for cell, figures in medians(self._stage, measure, case).items():
            if (cell.peer, cell.settings) == (peer, settings):
                return figures[key]
        return None

    def _peers(
        self, measure: str, case: str, key: str, best: Callable[[list[float]], float]
    ) -> float | None:
        values = [
            value
            for cell, figures in medians(self._stage, measure, case).items()
            if cell.peer not in (CONDUCTOR, FLOOR) and (value := figures[key]) is not None
        ]
        return best(values) if values else None


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None
