"""``Step``: how a single step is tried again, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conductor_cli import timing

if TYPE_CHECKING:
    from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Step:
    """A step's name, how it is retried by itself, and how long it may take.

    ``max_attempts``: how often it may be tried before its error is the task's; ``retry``: as that
    of a task; ``retry_on``: exception types that alone are tried again. Between two tries the
    execution leaves its thread; that is no failure of the task.
    ``timeout``: seconds one try may take; then StepTimedOut is raised in its place. A plain
    function that does not return within a second of it is left behind in its thread.
    ``returns``: the type of the result, or a pydantic TypeAdapter, where the function has no
    return annotation, or another is meant.
    ``shield``: a cancel does not cut off its ``async def`` function: it ends and is recorded.
    """

    name: str
    max_attempts: int = 1
    retry: timing.RetryPolicy | None = None
    retry_on: type[Exception] | tuple[type[Exception], ...] | None = None
    timeout: float | timedelta | None = None
    returns: Any = None
    shield: bool = False

    def __post_init__(self) -> None:
        count = self.max_attempts
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"max_attempts={count!r} is not a whole number of 1 or more")
        object.__setattr__(self, "retry", timing.checked_retry(self.retry))
        object.__setattr__(self, "retry_on", _checked_types(self.retry_on))
        if self.timeout is not None:
            seconds = timing.seconds(self.timeout, "timeout")
            if seconds <= 0:
                raise ValueError(f"timeout={self.timeout!r} is not a duration above zero")
            object.__setattr__(self, "timeout", float(seconds))

    @property
    def seconds(self) -> float:
        """The timeout as a number; only where there is one."""
        assert isinstance(self.timeout, float)
        return self.timeout


def _checked_types(given: Any) -> tuple[type[Exception], ...] | None:
    if given is None:
        return None
    types = given if isinstance(given, tuple) else (given,)
    if not types or not all(isinstance(t, type) and issubclass(t, Exception) for t in types):
        raise ValueError(f"retry_on={given!r} is not an exception type, or a tuple of them")
    return types
