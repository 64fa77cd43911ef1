"""From what a scenario found to a line of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.faults.catalogue import Scenario
from tests.faults.checker import Count
from tests.faults.stage import HAS_STEPS, Line

HEAD = ("fault", "injected", "figures", "must hold", "verdict")


@dataclass(frozen=True, slots=True)
class Result:
    """One scenario, played. ``reason``: why it could not run here."""

    scenario: Scenario
    line: Line
    seconds: float
    shortened: Sequence[str]
    reason: str | None = None

    @property
    def failed(self) -> bool:
        count = self.line.count
        return bool(self.line.broken) or (count is not None and not count.holds)

    @property
    def verdict(self) -> str:
        if self.reason is not None:
            return f"cannot run here: {self.reason}"
        if not self.failed:
            return "holds"
        broken = [*self.line.broken, *(self.line.count.violations if self.line.count else [])]
        why = "; ".join(broken)
        known = self.scenario.known
        return f"FAILS: {why}" if known is None else f"FAILS, as is known ({known}): {why}"

    @property
    def cells(self) -> tuple[str, ...]:
        return (
            f"{self.scenario.name}: {self.scenario.injects}",
            str(self.line.injected),
            figures(self.line),
            self.scenario.holds,
            self.verdict,
        )


def figures(line: Line) -> str:
    """What was counted, and what was measured."""
    counted = [] if line.count is None else [counts(line.count)]
    return "; ".join([*counted, *(f"{name} {value}" for name, value in line.figures.items())])


def counts(count: Count) -> str:
    """The checker's figures; all of the forbidden ones, whatever they are."""
    parts = [
        f"{count.executions} executions in {count.runs} runs",
        f"lost {count.lost}",
        f"ghosts {count.ghosts}",
        f"double {count.double}",
        f"late {count.late + count.invented}",
        f"overlaps {count.overlaps_allowed} allowed, {count.overlaps_forbidden} forbidden",
    ]
    if count.ticks:
        missing, extra = count.ticks_missing, count.ticks_extra
        parts.append(f"ticks {count.ticks}, missing {missing}, extra {extra}")
    parts.append(f"step re-runs {count.step_reruns}" if HAS_STEPS else "step re-runs 0 (no steps)")
    return ", ".join(parts)


def markdown(results: Sequence[Result], notes: Sequence[str]) -> str:
    """The table, and below it what is not in it."""
    rows = [HEAD, ("---",) * len(HEAD), *(r.cells for r in results)]
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join([*lines, "", *notes, ""])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def plain(result: Result) -> str:
    """One line for a terminal, as soon as it is there."""
    line, name = result.line, result.scenario.name
    return (
        f"{name:<22} {result.seconds:5.1f} s  x{line.injected:<4} {result.verdict}"
        f"\n{'':<22} {figures(line)}"
    )
