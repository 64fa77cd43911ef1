"""The table of scenarios: a name, the fault, what must hold, and the function that does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from tests.faults.stage import Stage

Play: TypeAlias = Callable[[Stage], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """``injects`` and ``holds`` are the two paragraphs of the function's docstring. ``known`` says
    why it is known to fail at present: it fails all the same."""

    name: str
    injects: str
    holds: str
    play: Play
    known: str | None


SCENARIOS: Final[dict[str, Scenario]] = {}


def scenario(name: str, *, known: str | None = None) -> Callable[[Play], Play]:
    """Enter a function into the table."""

    def enter(play: Play) -> Play:
        injects, _, holds = (play.__doc__ or "").partition("\n\n")
        if not holds.strip() or name in SCENARIOS:
            raise ValueError(f"{name}: a new name, and a docstring of what is injected and holds")
        SCENARIOS[name] = Scenario(name, _line(injects), _line(holds), play, known)
        return play

    return enter


def _line(text: str) -> str:
    return " ".join(text.split())
