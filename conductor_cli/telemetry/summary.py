"""Executions that end well are too many for a line each: one line every few seconds, by state."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY: Final = 5.0  # seconds


class Summary:
    """Counts ends until the writer's thread tells them, with the given ``emit``."""

    def __init__(self, emit: Callable[..., None]) -> None:
        self._emit = emit
        self._lock = threading.RLock()  # re-entrant, for finalizers that log
        self._states: dict[str, int] = {}
        self._since = 0.0

    def add(self, state: str, count: int) -> bool:
        """Returns whether this is the first since the last telling."""
        with self._lock:
            if self._states:
                self._states[state] = self._states.get(state, 0) + count
                return False
            self._since, self._states[state] = time.monotonic(), count
            return True

    def due_in(self) -> float | None:
        """Seconds until there is something to tell; None: nothing in sight."""
        return max(0.0, self._since + EVERY - time.monotonic()) if self._states else None

    def tell(self, *, early: bool = False) -> bool:
        """Tell what there is, if it is due or wanted ``early``; returns whether it did."""
        due = self.due_in()
        if due is None or (due > 0 and not early):
            return False
        with self._lock:
            states, self._states = self._states, {}
            seconds = time.monotonic() - self._since
        fields: dict[str, Any] = {**states, "seconds": round(seconds, 3)}
        if seconds >= 1:
            fields["per_second"] = round(sum(states.values()) / seconds, 1)
        self._emit("executions.summary", **fields)
        return True
