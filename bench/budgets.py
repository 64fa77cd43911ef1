"""The budgets that the project set itself, held against the figures of one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.report import CONDUCTOR, FLOOR, medians

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.stage import Stage

_STRONGEST: Final = "graphile-worker"  # the peer, tuned, that the drain is measured by
_DURABLE: Final = "dbos"  # the one, tuned, that steps and children are measured by
_ABOVE_FLOOR: Final = 0.3  # ms


@dataclass(frozen=True)
class Verdict:
    """One budget: what was found, what it must be and what we aim at; `value` None when the run
    does not tell."""

    budget: str
    value: float | None
    limit: float | None
    at_least: bool
    aim: float | None = None

    @property
    def met(self) -> bool | None:
        return self._holds(self.limit)

    @property
    def aim_met(self) -> bool | None:
        return self._holds(self.aim)

    def _holds(self, limit: float | None) -> bool | None:
        if self.value is None or limit is None:
            return None
        return self.value >= limit if self.at_least else self.value <= limit


def verdicts(stage: Stage) -> list[Verdict]:
    """Every budget that this run can say something about."""
    look = _Figures(stage)
    own, least, most = look.own, _at_least, _at_most
    idle = "daemon" if own("idle", "daemon", "rss_mib") is not None else "worker"
    found = [
        least("drain, no-op: x graphile-worker tuned", look.drain(), 1.0, 1.5),
        least("drain, 1 ms sleep: x ten bare threads", look.sleep(), 0.9),
        *(
            least(f"durable, {case}: x dbos tuned", look.durable(case), 5.0)
            for case in ("steps", "children")
        ),
        least("bulk enqueue: x best peer", look.bulk(), 2.0),
        least("bulk enqueue/s", own("enqueue", "bulk", "rate"), None, 200_000.0),
        least("single enqueue: x bare insert", look.single(), 0.9),
        most("latency p50, ms", own("latency", "idle worker", "p50_ms"), 2.5, look.floor()),
        most("latency p99, ms", own("latency", "idle worker", "p99_ms"), 8.0),
        most("latency p50: x fastest peer", look.latency(), 1.0),
        most(f"idle {idle}, statements/s", own("idle", idle, "statements_s"), 0.5),
        most(f"idle {idle}, CPU %", own("idle", idle, "client_percent"), 0.3),
        most(f"idle {idle}, RSS MiB", own("idle", idle, "rss_mib"), 60.0),
        *(
            least(f"a crowd {case}: % of the empty rate", own("crowd", case, "share"), 90.0)
            for case in ("queued", "finished", "future")
        ),
        most("snapshot held: p99 x without", own("snapshot", "held", "p99_ratio"), 5.0, 2.0),
        least("four servers: x one", own("servers", "1, 2, 4", "gain"), 1.0),
        most("four servers: deadlocks", own("servers", "1, 2, 4", "deadlocks"), 0.0),
        most("four servers: executions run twice", own("servers", "1, 2, 4", "doubles"), 0.0),
        most("start to ready, s", own("start", "ready", "seconds"), 0.7),
    ]
    return [verdict for verdict in found if verdict.value is not None]


def _at_least(
    budget: str, value: float | None, limit: float | None, aim: float | None = None
) -> Verdict:
    return Verdict(budget, value, limit, at_least=True, aim=aim)


def _at_most(
    budget: str, value: float | None, limit: float | None, aim: float | None = None
) -> Verdict:
    return Verdict(budget, value, limit, at_least=False, aim=aim)


def text(stage: Stage) -> str:
    """The budgets as a list; empty when Conductor was not measured."""
    found = verdicts(stage)
    if not found:
        return ""
    lines = ["## Budgets\n"]
    return "\n".join([*lines, *(f"- {_line(verdict)}" for verdict in found)]) + "\n"


def _line(verdict: Verdict) -> str:
    word = {True: "met", False: "MISSED", None: "aim"}[verdict.met]
    sign = ">=" if verdict.at_least else "<="
    terms = [] if verdict.limit is None else [f"must {sign} {verdict.limit:,g}"]
    if verdict.aim is not None:
        terms.append(f"aim {sign} {verdict.aim:,.6g}: {'met' if verdict.aim_met else 'not yet'}")
    return f"{word}: {verdict.budget}: {verdict.value:,.2f} ({'; '.join(terms)})"


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

    def durable(self, case: str) -> float | None:
        return _ratio(
            self.own("durable", case, "rate"),
            self._one("durable", case, "rate", _DURABLE, "tuned"),
        )

    def bulk(self) -> float | None:
        return _ratio(
            self.own("enqueue", "bulk", "rate"), self._peers("enqueue", "bulk", "rate", max)
        )

    def single(self) -> float | None:
        return _ratio(
            self.own("enqueue", "single", "rate"), self._one("enqueue", "single", "rate", FLOOR)
        )

    def floor(self) -> float | None:
        """The aim of the idle latency: a bare insert, notify and claim of this run, and a bit."""
        bare = self._one("latency", "idle worker", "p50_ms", FLOOR)
        return None if bare is None else bare + _ABOVE_FLOOR

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
