"""``Step``: how often and when a single step is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from conductor_cli import timing


@dataclass(frozen=True, slots=True)
class Step:
    """A step's name, and how it is retried by itself.

    ``max_attempts``: how often it may be tried before its error is the task's; ``retry``: as that
    of a task. Between two tries the execution leaves its thread; that is no failure of the task.
    ``returns``: the type of the result, or a pydantic TypeAdapter, where the function has no
    return annotation, or another is meant.
    """

    name: str
    max_attempts: int = 1
    retry: timing.RetryPolicy | None = None
    returns: Any = None

    def __post_init__(self) -> None:
        count = self.max_attempts
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"max_attempts={count!r} is not a whole number of 1 or more")
        object.__setattr__(self, "retry", timing.checked_retry(self.retry))
