"""What a task may ask of its context, checked at once and made ready as work that may block.

``Context`` does the work where it is, ``AsyncContext`` in the thread that waits for its task.
"""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from conductor_cli import arguments, filters, lines, payloads
from conductor_cli.attempt import Abort
from conductor_cli.errors import ChildCancelled, ChildFailed, PayloadError, StepError, TimedOut
from conductor_cli.models import NAME_PATTERN
from conductor_cli.step import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from conductor_cli.attempt import Attempt
    from conductor_cli.client import Conductor
    from conductor_cli.journal import Line
    from conductor_cli.ledger import Ledger
    from conductor_cli.steps import StepCall

_inside: Final[ContextVar[str | None]] = ContextVar("conductor_step", default=None)
"""The step whose function this thread, or asyncio task, is in."""

_opening: Final = threading.Lock()

P = ParamSpec("P")
R = TypeVar("R")


def _sticking(
    method: Callable[Concatenate[Calls, P], Callable[[], R]],
) -> Callable[Concatenate[Calls, P], Callable[[], R]]:
    """A StepError of this call sticks: the run ends by it, whatever the code does with it."""

    @wraps(method)
    def checked(self: Calls, /, *args: P.args, **kwargs: P.kwargs) -> Callable[[], R]:
        with self.sticking():
            work = method(self, *args, **kwargs)

        def done() -> R:
            with self.sticking():
                return work()

        return done

    return checked


class Calls:
    """See the module. Each returns the work; what it raises, the task is to see."""

    def __init__(self, attempt: Attempt, conductor: Conductor, line: Callable[[], Line]) -> None:
        self._attempt = attempt
        self._conductor = conductor
        self._line = line

    @property
    def ledger(self) -> Ledger:
        """Opened when first used: most tasks need none."""
        return self._attempt.ledger or opened(self._attempt, self._conductor)

    @contextmanager
    def sticking(self) -> Iterator[None]:
        """A StepError that is raised inside sticks."""
        try:
            yield
        except StepError as error:
            if self._attempt.stuck is None and not self._attempt.has_ended:
                self._attempt.stuck = error
            raise

    def step(self, step: Step, fn: Callable[..., Any]) -> StepCall:
        """A call of a step, not begun."""
        from conductor_cli.steps import StepCall

        with self.sticking():
            line = self._enter(f"Step {step.name!r}", suspends=False)
            return StepCall(self.ledger, line, step, fn)

    @_sticking
    def transaction(self) -> Callable[[], Any]:
        self._enter("transaction()", suspends=False)
        return self.ledger.lend

    @_sticking
    def sleep(self, name: str, seconds: float | timedelta) -> Callable[[], None]:
        from conductor_cli import ledger

        line = self._enter(f"Sleep {name!r}", suspends=True)
        number = ledger.seconds(seconds, f"sleep {name!r}")
        return lambda: self.ledger.sleep(line, name, number)

    @_sticking
    def sleep_until(self, name: str, moment: datetime) -> Callable[[], None]:
        from conductor_cli import ledger

        line = self._enter(f"Sleep {name!r}", suspends=True)
        until = ledger.moment(moment)
        return lambda: self.ledger.sleep(line, name, until)

    @_sticking
    def invoke(
        self,
        name: str,
        task: Any,
        payload: object,
        timeout: float | timedelta | None,
        options: Mapping[str, Any],
    ) -> Callable[[], Any]:
        from conductor_cli import ledger

        line = self._enter(f"Child {name!r}", suspends=True)
        limit = None if timeout is None else ledger.seconds(timeout, "timeout")

        def work() -> Any:
            entry = self.ledger.invoke(
                line, name, lambda: self._conductor.child(task, payload, options), _name(task),
                seconds=limit, waits=True,
            )  # fmt: skip
            return self._told(name, "c", lambda: ledger.result(entry, _decoder(task)))

        return work

    @_sticking
    def start(
        self, name: str, task: Any, payload: object, options: Mapping[str, Any]
    ) -> Callable[[], UUID]:
        line = self._enter(f"Child {name!r}", suspends=False)

        def work() -> UUID:
            entry = self.ledger.invoke(
                line, name, lambda: self._conductor.child(task, payload, options), _name(task),
                seconds=None, waits=False,
            )  # fmt: skip
            assert entry.child_id is not None
            return entry.child_id

        return work

    @_sticking
    def invoke_many(
        self,
        name: str,
        task: Any,
        given: Sequence[object],
        timeout: float | timedelta | None,
        options: Mapping[str, Any],
        *,
        tolerant: bool,
    ) -> Callable[[], list[Any]]:
        from conductor_cli import ledger

        line = self._enter(f"Children {name!r}", suspends=True)
        limit = None if timeout is None else ledger.seconds(timeout, "timeout")
        tasks = [each if _is_bound(each) else task for each in given]

        def work() -> list[Any]:
            if not tasks:
                return []
            entries = self.ledger.invoke_many(
                line, name, lambda: self._conductor.children(task, given, options),
                [_name(each) for each in tasks], seconds=limit, tolerant=tolerant,
            )  # fmt: skip
            if len(entries) < len(tasks):  # the one that failed first
                return [
                    self._told(name, "g", partial(ledger.result, entry, payloads.decode))
                    for entry in entries
                ]
            decoders = [_decoder(each) for each in tasks]
            results = []
            for entry, decode in zip(entries, decoders, strict=True):
                try:
                    results.append(self._told(name, "g", partial(ledger.result, entry, decode)))
                except Exception as error:
                    if not tolerant:
                        raise
                    results.append(error)
            return results

        return work

    @_sticking
    def wait(self, name: str, id: UUID, timeout: float | timedelta | None) -> Callable[[], Any]:
        from conductor_cli import ledger

        line = self._enter(f"Wait {name!r}", suspends=True)
        asked = arguments.as_id(id)
        limit = None if timeout is None else ledger.seconds(timeout, "timeout")

        def work() -> Any:
            entry = self.ledger.wait(line, name, asked, seconds=limit)
            return self._told(name, "w", lambda: ledger.result(entry, payloads.decode))

        return work

    @_sticking
    def subscribe(
        self, name: str, event: str, where: Mapping[str, Any] | None, *, waits: bool
    ) -> Callable[[], None]:
        line = self._enter(f"Event {name!r}", suspends=waits)
        _check_event(event)
        exact, tests = filters.compiled(where)

        def work() -> None:
            self.ledger.subscribe(line, name, event, exact, tests)

        return work

    @_sticking
    def heard(
        self, name: str, timeout: float | timedelta | None, *, once: bool = False
    ) -> Callable[[], Any]:
        from conductor_cli import ledger

        line = self._enter(f"Event {name!r}", suspends=True)
        limit = None if timeout is None else ledger.seconds(timeout, "timeout")
        return lambda: self._told(
            name, "e", lambda: self.ledger.heard(line, name, limit, once=once)
        )

    @_sticking
    def wait_for_event(
        self,
        name: str,
        event: str,
        where: Mapping[str, Any] | None,
        timeout: float | timedelta | None,
    ) -> Callable[[], Any]:
        register = self.subscribe(name, event, where, waits=True)
        wait = self.heard(name, timeout, once=True)

        def work() -> Any:
            register()
            return wait()

        return work

    @_sticking
    def emit(self, event: str, payload: object) -> Callable[[], UUID]:
        self.check()
        return lambda: self._conductor.emit(event, payload)

    @_sticking
    def cancel(self, id: UUID, reason: str | None) -> Callable[[], bool]:
        self.check()
        return lambda: self._conductor.cancel(id, reason)

    @_sticking
    def progress(
        self, done: float, total: float | None, message: str | None, data: object
    ) -> Callable[[], None]:
        """At most once a second; of what comes in between the last is written at the end."""
        self.check()
        given = {"done": done, "total": total, "message": message, "data": data}
        told = {key: value for key, value in given.items() if value is not None}
        text = payloads.encode(told, "The progress", self.ledger.limit)
        return lambda: self.ledger.progress(text)

    def _told(self, name: str, kind: str, result: Callable[[], R]) -> R:
        """What was waited for, as the database has decided it: a failure of it stands."""
        try:
            return result()
        except (ChildFailed, ChildCancelled, TimedOut, PayloadError) as error:
            self.ledger.journal.stand(error, name, kind)
            raise

    def check(self) -> None:
        """Leave the task if it should stop."""
        if (
            threading.get_ident() == self._attempt.main
            and self._attempt.code is not None
            and lines.has_left(self._attempt.code)
        ):
            self._attempt.has_ended = True
        if self._attempt.ledger is not None or self._attempt.has_ended:
            self.ledger.check()
        elif self._attempt.stuck is not None:
            raise self._attempt.stuck
        elif (why := self._attempt.abort_reason) is not None and why is not Abort.SHUTDOWN:
            self._attempt.signal.raise_if_aborted()

    def _enter(self, what: str, *, suspends: bool) -> Line:
        """Refuse what cannot be remembered from here; returns the line the call comes from."""
        self.check()
        if (step := _inside.get()) is not None:
            raise StepError(
                f"{what} is inside the step {step!r}, which may run again as a whole. Use it "
                "before or after the step, in the task itself."
            )
        line = self._line()
        if suspends and self._attempt.ledger is not None and self._attempt.ledger.loan is not None:
            raise StepError(
                f"{what} comes after transaction(), whose writes would be lost when the thread is "
                "left. Wait first; or write in a step of its own, with transact()."
            )
        if suspends and not line.is_main:
            raise StepError(
                f"{what} is beside the task's own flow, inside gather, a TaskGroup or another "
                "thread, and that cannot be suspended. Await it in the task itself; for several "
                "children at the same time there is invoke_many."
            )
        return line


def opened(attempt: Attempt, conductor: Conductor) -> Ledger:
    """The attempt's ledger."""
    from conductor_cli.ledger import Ledger  # it knows the database: not for defining tasks

    with _opening:
        if attempt.ledger is None:
            attempt.ledger = Ledger(attempt, conductor)
        return attempt.ledger


@contextmanager
def inside(step: Step) -> Iterator[None]:
    """The step's function runs."""
    before = _inside.set(step.name)
    try:
        yield
    finally:
        _inside.reset(before)


@contextmanager
def busy(line: Line) -> Iterator[None]:
    """A step of this line is in progress, from its function's first try to its record."""
    line.calls += 1
    try:
        yield
    finally:
        line.calls -= 1


def named(name: str | Step) -> Step:
    return name if isinstance(name, Step) else Step(name)


def _check_event(event: object) -> None:
    if not isinstance(event, str) or not re.fullmatch(NAME_PATTERN, event):
        raise StepError(
            f"{event!r} is not the name of an event, and `emit` refuses it: a name has 1 to 200 of "
            "the characters A-Z a-z 0-9 _ . : -"
        )


def _is_bound(value: object) -> bool:
    """Whether it is an Invocation: a task with its payload."""
    return hasattr(value, "task") and hasattr(value, "overrides") and hasattr(value, "payload")


def _task(target: Any) -> Any:
    """The task of a task, of one with options or with a payload; or its name."""
    return target if isinstance(target, str) else getattr(target, "task", target)


def _name(target: Any) -> str:
    task = _task(target)
    return task if isinstance(task, str) else str(task.name)


def _decoder(target: Any) -> Callable[[str], Any]:
    task = _task(target)
    if isinstance(task, str):
        return payloads.decode
    decode: Callable[[str], Any] = task.result_type.decode
    return decode
