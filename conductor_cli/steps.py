"""One call of a step: what is recorded of it, or its function's way to a record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from conductor_cli import payloads, stored_error, timing
from conductor_cli.errors import PayloadError, StepError, TaskDefinitionError, TaskSignal
from conductor_cli.ledger import LONGEST
from conductor_cli.models import Park
from conductor_cli.results import ResultType
from conductor_cli.store.ledger import New

if TYPE_CHECKING:
    from collections.abc import Callable

    from conductor_cli.database import Connection
    from conductor_cli.journal import Line
    from conductor_cli.ledger import Ledger
    from conductor_cli.step import Step
    from conductor_cli.store.ledger import Entry


class StepCall:
    """A call of a step on a line: once begun ``is_recorded`` with its ``value``, or to be run.

    ``was_cut``: an earlier run cut it off after so many seconds, and that stands.
    """

    def __init__(self, ledger: Ledger, line: Line, step: Step, fn: Callable[..., Any]) -> None:
        self._kind = _result_type(step, fn)
        self.line = line
        self._ledger, self._step = ledger, step
        self.value: Any = None
        self.is_recorded = False
        self.was_cut: float | None = None
        self._failures = 0

    @property
    def name(self) -> str:
        return self._step.name

    def begin(self) -> None:
        """Ask what is recorded of it; raises the failure that stands."""
        self._found(self._ledger.ask(self.line, self.name, "s"))

    def begin_at_once(self) -> bool:
        """As ``begin``, where that does not block; False: it would."""
        asked, entry = self._ledger.ask_at_once(self.line, self.name, "s")
        self._found(entry)
        return asked

    def _found(self, entry: Entry | None) -> None:
        if entry is None:
            return
        self._failures = entry.failures
        if entry.state == "c":
            self.value = self._decoded(entry.value or "null")
            self.is_recorded = True
        elif entry.state == "k":
            self.was_cut = float(entry.value or 0)

    def done(self, value: object) -> None:
        """Record what it returned; ``value`` is what a later run will be given."""
        self._ledger.record(self._encoded(value))
        self.is_recorded = True

    def transact(self, fn: Callable[[Connection], Any]) -> None:
        """Call ``fn`` with a connection whose writes are committed together with the record."""
        self._ledger.transact(lambda conn: self._encoded(fn(conn)))
        self.is_recorded = True

    def failed(self, error: Exception) -> float:
        """Raise ``error`` if there is no other try, or leave the thread until that is due;
        returns the seconds to wait in place where the thread cannot be left."""
        if isinstance(error, StepError) or error is self._ledger.unstorable:
            raise error
        self._ledger.check()
        name, told, before = self._step.name, stored_error.encode(error), self._failures
        self._failures += 1
        delay = self._delay(error)
        if delay is None:
            if before:  # the task's next attempt begins to count anew
                self._ledger.record(self._new("p", error=told))
            self._ledger.fail(self.line, self._new("f", error=told), error)
            raise error
        delay = min(max(0.0, delay), LONGEST)
        until = self._ledger.record(
            self._new("p", seconds=delay, failures=self._failures, error=told)
        )
        if self.line.is_main and delay > 0 and self._ledger.leaves_threads:
            self._ledger.suspend(name, Park.RETRIES, until)
        return delay

    def cut(self, error: BaseException, seconds: float) -> None:
        """The code has cut it off, so many seconds after it began. If that comes to stand, no
        later run calls the function, whatever has become of it."""
        self._ledger.fail(self.line, self._new("k", value=repr(seconds)), error)

    def cut_again(self, error: BaseException) -> None:
        """The code has cut it off as an earlier run did."""
        self._ledger.journal.stand(error, self._step.name, "s")

    def _delay(self, error: Exception) -> float | None:
        step = self._step
        if isinstance(error, TaskSignal) or self._failures >= step.max_attempts:
            return None
        if step.retry_on is not None and not isinstance(error, step.retry_on):
            return None
        return timing.retry_delay(step.retry, self._failures, error)

    def _encoded(self, value: object) -> New:
        """What is recorded of a value. One that cannot be stored ends the execution: to run the
        step again would repeat its effect, and change nothing."""
        what = f"The result of step {self._step.name!r}"
        try:
            text, self.value = self._kind.encode(value, what, self._ledger.limit)
            self._ledger.make_room(self.name, len(text))
        except PayloadError as error:
            self._ledger.unstorable = error
            raise
        return self._new("c", value=text)

    def _new(self, state: str, **more: Any) -> New:
        return New(self._step.name, "s", state, branch=not self.line.is_main, **more)

    def _decoded(self, text: str) -> Any:
        try:
            return self._kind.decode(text)
        except PayloadError as error:
            raise StepError(f"Step {self._step.name!r}: {error}") from error


def _result_type(step: Step, fn: Callable[..., Any]) -> ResultType:
    """How the result of a step's function is kept: as ``returns`` or its return annotation says."""
    try:
        if step.returns is not None:
            return ResultType(step.returns, f"Step {step.name!r}")
        known = getattr(fn, "result_type", None)
        return known if isinstance(known, ResultType) else _of_function(fn)
    except TaskDefinitionError as error:
        raise StepError(f"Step {step.name!r}: {error}") from error


def _of_function(fn: Callable[..., Any]) -> ResultType:
    inner = payloads.underlying(fn)
    if isinstance(inner, type) or "return" in getattr(inner, "__annotations__", {}):
        return ResultType.of(inner if isinstance(inner, type) else fn)
    return _UNTYPED


_UNTYPED: Final = ResultType(Any, "")
