"""From what a task has raised to how its run ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from conductor_cli import registry, timing
from conductor_cli.attempt import Abort
from conductor_cli.errors import (
    Cancel,
    Cancelling,
    Fail,
    Retry,
    StepError,
    Suspending,
    Suspension,
    TaskSignal,
    TaskTimeout,
)
from conductor_cli.failure import MESSAGE_LIMIT, NAME_LIMIT, clean, describe, text
from conductor_cli.models import Cancelled, ExecutionError, Failed, HandedBack, Retrying

if TYPE_CHECKING:
    from conductor_cli.attempt import Attempt
    from conductor_cli.models import Claimed, Outcome
    from conductor_cli.registry import Task


def of_error_whatever(task: Task[..., Any], attempt: Attempt, error: BaseException) -> Outcome:
    """As ``of_error``, also where the error's own code raises when it is asked: a group's
    ``derive``, a class without a name."""
    try:
        return of_error(task, attempt, error)
    except BaseException as worse:
        return Failed(
            ExecutionError(
                clean(text(type(error)), NAME_LIMIT),
                clean(f"What it raised cannot be described: {text(worse)}", MESSAGE_LIMIT),
            )
        )


def of_error(task: Task[..., Any], attempt: Attempt, error: BaseException) -> Outcome:
    """How a run ends whose task has raised ``error``."""
    error = _out_of_group(error)
    if (decided := _whatever_is_raised(task, attempt, error)) is not None:
        return decided
    if isinstance(error, Suspension):
        return _left(task, attempt, error)
    journal = None if attempt.ledger is None else attempt.ledger.journal
    match error:
        case Cancel(reason=reason):
            return _cancel(reason)
        case Fail():
            return Failed(describe(error))
        case _ if journal is not None and (stands := journal.end_by(error)):
            return Failed(_explained(error, journal.explain(*stands)))
        case _:
            return _failed(task, attempt, error)


def _failed(task: Task[..., Any], attempt: Attempt, error: BaseException) -> Outcome:
    match error:
        case Retry():
            return _again(task, attempt.claimed, error)
        case asyncio.CancelledError():
            return _cancelled(task, attempt, error)
        case _:
            return _failure(task, attempt.claimed, error)


def given_up(task: Task[..., Any], attempt: Attempt, grace: float) -> Outcome:
    """How a run ends that goes on after its timeout, whatever it is told."""
    where = "on the event loop" if task.is_async else "in its thread"
    told = f"{attempt.time_is_up}, did not stop within {grace:g} s, and still runs {where}"
    return _failure(task, attempt.claimed, TaskTimeout(told))


def too_late(task: Task[..., Any], attempt: Attempt) -> Outcome:
    """How a run ends that returned after its timeout."""
    told = f"{attempt.time_is_up}; it returned later, and its result is dropped"
    return _failure(task, attempt.claimed, TaskTimeout(told))


def _whatever_is_raised(
    task: Task[..., Any], attempt: Attempt, error: BaseException
) -> Outcome | None:
    """What a run ends by although its code has made something else of it."""
    ledger, why = attempt.ledger, attempt.abort_reason
    if ledger is not None and ledger.unstorable is not None:
        return Failed(describe(ledger.unstorable))
    if attempt.stuck is not None:
        return _failure(task, attempt.claimed, attempt.stuck)
    if isinstance(error, Suspension) or (isinstance(error, asyncio.CancelledError) and why):
        return None
    if ledger is not None and (wrong := ledger.swallowed()) is not None:
        wrong.__cause__ = error
        return Failed(describe(wrong))
    if why in (Abort.SHUTDOWN, Abort.LOST) and attempt.signal.was_raised:
        return HandedBack(0.0)
    return None


def _left(task: Task[..., Any], attempt: Attempt, error: Suspension) -> Outcome:
    claimed = attempt.claimed
    match error:
        case Suspending(outcome=outcome):
            return outcome
        case Cancelling(reason=reason):
            return _cancel(reason)
        case TaskTimeout():
            if not error.args:  # it was raised into the thread, which takes no text along
                error.args = (f"{attempt.time_is_up}, and stopped",)
            return _failure(task, claimed, error)
        case _:
            return HandedBack(0.0)


def _cancel(reason: str | None) -> Cancelled:
    return Cancelled(clean(text(reason), MESSAGE_LIMIT) if reason else None)


def _explained(error: BaseException, why: str) -> ExecutionError:
    told = describe(error)
    message = clean(f"{told.message}\n{why}", MESSAGE_LIMIT)
    return ExecutionError(told.type, message, told.traceback)


def _out_of_group(error: BaseException) -> BaseException:
    """What a task ends itself with, also when an asyncio.TaskGroup has wrapped it."""
    if isinstance(error, BaseExceptionGroup):
        _, others = error.split((Suspension, TaskSignal))
        while others is None and isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
    return error


def _cancelled(task: Task[..., Any], attempt: Attempt, error: BaseException) -> Outcome:
    claimed = attempt.claimed
    match attempt.abort_reason:
        case None:
            return _failure(task, claimed, error)
        case Abort.CANCELLED:
            return Cancelled(None)
        case Abort.TIMEOUT:
            return _failure(task, claimed, TaskTimeout(f"{attempt.time_is_up}, and stopped"))
        case Abort.SHUTDOWN | Abort.LOST:
            return HandedBack(0.0)


def _again(task: Task[..., Any], claimed: Claimed, retry: Retry) -> Outcome:
    if retry.counts:
        return _failure(task, claimed, retry, retry.delay)
    if retry.delay is not None:
        return Retrying(_bounded(retry.delay), None, counts=False)
    return _delayed(task, claimed.failures + 1, retry, counts=False)


def _failure(
    task: Task[..., Any], claimed: Claimed, error: BaseException, delay: float | None = None
) -> Outcome:
    failures = claimed.failures + 1
    if failures >= task.settings.max_attempts or (isinstance(error, StepError) and error.is_final):
        return Failed(describe(error))
    if delay is not None:
        return Retrying(_bounded(delay), describe(error), counts=True)
    return _delayed(task, failures, error, counts=True)


def _delayed(task: Task[..., Any], failures: int, error: BaseException, *, counts: bool) -> Outcome:
    try:
        delay = timing.retry_delay(task.settings.retry, failures, error)
    except Exception as worse:
        return Failed(describe(worse))
    if delay is None:
        return Failed(describe(error))
    return Retrying(_bounded(delay), describe(error) if counts else None, counts=counts)


def _bounded(delay: float) -> float:
    return min(max(0.0, delay), registry.LONGEST)
