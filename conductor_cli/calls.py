"""What a task may ask of its context, checked at once and made ready as work that may block.

``Context`` does the work where it is, ``AsyncContext`` in the thread that waits for its task.
"""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from conductor_cli import filters, payloads
from conductor_cli.attempt import Abort
from conductor_cli.errors import StepError
from conductor_cli.models import NAME_PATTERN
from conductor_cli.step import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from conductor_cli.attempt import Attempt
    from conductor_cli.client import Conductor
    from conductor_cli.ledger import Ledger, Run

_inside: Final[ContextVar[str | None]] = ContextVar("conductor_step", default=None)
"""The step whose function this thread, or asyncio task, is in."""

_opening: Final = threading.Lock()


class Calls:
    """See the module. Each returns the work; what it raises, the task is to see."""

    def __init__(
        self, attempt: Attempt, conductor: Conductor, is_branch: Callable[[], bool]
    ) -> None:
        self._attempt = attempt
        self._conductor = conductor
        self._is_branch = is_branch

    @property
    def ledger(self) -> Ledger:
        """Opened when first used: most tasks need none."""
        return self._attempt.ledger or opened(self._attempt, self._conductor)

    def step(self, step: Step, fn: Callable[..., Any]) -> Callable[[], Run]:
        branch = self._enter(f"Step {step.name!r}", suspends=False)
        return lambda: self.ledger.step(step, fn, branch=branch)

    def transaction(self) -> Callable[[], Any]:
        self._enter("transaction()", suspends=False)
        return self.ledger.lend

    def sleep(self, name: str, seconds: float | timedelta) -> Callable[[], None]:
        from conductor_cli import ledger

        self._enter(f"Sleep {name!r}", suspends=True)
        number = ledger.seconds(seconds, f"sleep {name!r}")
        return lambda: self.ledger.sleep(name, number)

    def sleep_until(self, name: str, moment: datetime) -> Callable[[], None]:
        from conductor_cli import ledger

        self._enter(f"Sleep {name!r}", suspends=True)
        until = ledger.moment(moment)
        return lambda: self.ledger.sleep(name, until)

    def invoke(
        self,
        name: str,
        task: Any,
        payload: object,
        timeout: float | timedelta | None,
        options: Mapping[str, Any],
    ) -> Callable[[], Any]:
        from conductor_cli import ledger

        self._enter(f"Child {name!r}", suspends=True)
        limit = None if timeout is None else ledger.seconds(timeout, "timeout")

        def work() -> Any:
            entry = self.ledger.invoke(
                name, lambda: self._conductor.child(task, payload, options), _name(task),
                seconds=limit, waits=True, branch=False,
            )  # fmt: skip
            return ledger.result(entry, _decoder(task))

        return work

    def start(
        self, name: str, task: Any, payload: object, options: Mapping[str, Any]
    ) -> Callable[[], UUID]:
        branch = self._enter(f"Child {name!r}", suspends=False)

        def work() -> UUID:
            entry = self.ledger.invoke(
                name, lambda: self._conductor.child(task, payload, options), _name(task),
                seconds=None, waits=False, branch=branch,
            )  # fmt: skip
            assert entry.child_id is not None
            return entry.child_id

        return work

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

        self._enter(f"Children {name!r}", suspends=True)
        limit = None if timeout is None else ledger.seconds(timeout, "timeout")
        tasks = [each if _is_bound(each) else task for each in given]

        def work() -> list[Any]:
            if not tasks:
                return []
            entries = self.ledger.invoke_many(
                name, lambda: self._conductor.children(task, given, options),
                [_name(each) for each in tasks], seconds=limit, tolerant=tolerant,
            )  # fmt: skip
            if len(entries) < len(tasks):  # the one that failed first
                return [ledger.result(entry, payloads.decode) for entry in entries]
            decoders = [_decoder(each) for each in tasks]
            results = []
            for entry, decode in zip(entries, decoders, strict=True):
                try:
                    results.append(ledger.result(entry, decode))
                except Exception as error:
                    if not tolerant:
                        raise
                    results.append(error)
            return results

        return work

    def wait(self, name: str, id: UUID, timeout: float | timedelta | None) -> Callable[[], Any]:
        from conductor_cli import ledger

        self._enter(f"Wait {name!r}", suspends=True)
        limit = None if timeout is None else ledger.seconds(timeout, "timeout")
        return lambda: ledger.result(self.ledger.wait(name, id, seconds=limit), payloads.decode)

    def subscribe(
        self, name: str, event: str, where: Mapping[str, Any] | None, *, waits: bool
    ) -> Callable[[], None]:
        branch = self._enter(f"Event {name!r}", suspends=waits)
        _check_event(event)
        exact, tests = filters.compiled(where)

        def work() -> None:
            self.ledger.subscribe(name, event, exact, tests, branch=branch)

        return work

    def heard(self, name: str, timeout: float | timedelta | None) -> Callable[[], Any]:
        from conductor_cli import ledger

        self._enter(f"Event {name!r}", suspends=True)
        limit = None if timeout is None else ledger.seconds(timeout, "timeout")
        return lambda: self.ledger.heard(name, limit)

    def wait_for_event(
        self,
        name: str,
        event: str,
        where: Mapping[str, Any] | None,
        timeout: float | timedelta | None,
    ) -> Callable[[], Any]:
        register = self.subscribe(name, event, where, waits=True)
        wait = self.heard(name, timeout)

        def work() -> Any:
            register()
            return wait()

        return work

    def emit(self, event: str, payload: object) -> Callable[[], UUID]:
        self.check()
        return lambda: self._conductor.emit(event, payload)

    def cancel(self, id: UUID, reason: str | None) -> Callable[[], bool]:
        self.check()
        return lambda: self._conductor.cancel(id, reason)

    def progress(
        self, done: float, total: float | None, message: str | None, data: object
    ) -> Callable[[], None]:
        """At most once a second; of what comes in between the last is written at the end."""
        self.check()
        given = {"done": done, "total": total, "message": message, "data": data}
        told = {key: value for key, value in given.items() if value is not None}
        text = payloads.encode(told, "The progress", self.ledger.limit)
        return lambda: self.ledger.progress(text)

    def check(self) -> None:
        """Leave the task if it should stop."""
        if self._attempt.ledger is not None:
            self._attempt.ledger.check()
        elif (why := self._attempt.abort_reason) is not None and why is not Abort.SHUTDOWN:
            self._attempt.signal.raise_if_aborted()

    def _enter(self, what: str, *, suspends: bool) -> bool:
        """Refuse what cannot be remembered from here; returns whether it is beside the flow."""
        if (step := _inside.get()) is not None:
            raise StepError(
                f"{what} is inside the step {step!r}, which may run again as a whole. Use it "
                "before or after the step, in the task itself."
            )
        branch = self._is_branch()
        if suspends and self._attempt.ledger is not None and self._attempt.ledger.loan is not None:
            raise StepError(
                f"{what} comes after transaction(), whose writes would be lost when the thread is "
                "left. Wait first; or write in a step of its own, with transact()."
            )
        if branch and suspends:
            raise StepError(
                f"{what} is beside the task's own flow, inside gather, a TaskGroup or another "
                "thread, and that cannot be suspended. Await it in the task itself; for several "
                "children at the same time there is invoke_many."
            )
        return branch


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
