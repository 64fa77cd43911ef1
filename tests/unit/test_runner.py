"""Running one claimed execution: every way to end, as a value; nothing gets past."""

import asyncio
import contextlib
import contextvars
import functools
import gc
import itertools
import math
import sys
import threading
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any, cast
from uuid import uuid4

import pytest

from conductor_cli import context, failure, registry, runner
from conductor_cli.catalog import TaskSet
from conductor_cli.client import Conductor
from conductor_cli.context import Abort, AsyncContext, Attempt, Context, TaskTimeout, current
from conductor_cli.errors import Cancel, Fail, PayloadError, Released, Retry
from conductor_cli.models import (
    Cancelled,
    Claimed,
    Completed,
    Failed,
    HandedBack,
    Outcome,
    Retrying,
)
from conductor_cli.registry import task
from conductor_cli.runner import EventLoop, Runner
from conductor_cli.service import Deadline
from conductor_cli.timing import Backoff

CONDUCTOR = cast("Conductor", object())
STATE = object()


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop()
    yield made
    made.stop()
    assert made.join(Deadline(5))


def claimed(payload: str = "{}", **changes: Any) -> Claimed:
    values: dict[str, Any] = {
        "id": uuid4(), "token": 1, "task": "work", "payload": payload, "runs": 1,
        "failures": 0, "crashes": 0, "timeout": None, "metadata": None, "event": None,
        "rank": 0, "run_at": datetime.now(UTC), "seq": 1, "flags": 0,
    }  # fmt: skip
    return Claimed(**{**values, **changes})


def ended(
    function: Callable[..., Any],
    payload: str = "{}",
    *,
    loop: EventLoop | None = None,
    before: Callable[[Attempt], object] = lambda attempt: None,
    limit: int = 1_000_000,
    failures: int = 0,
    timeout: float | None = None,
    **options: Any,
) -> Outcome:
    """How the function's attempt ends."""
    made = task(**{"name": "work", **options})(function)
    attempt = Attempt(claimed(payload, failures=failures, timeout=timeout))
    before(attempt)
    a_runner = Runner(
        TaskSet([made]), conductor=CONDUCTOR, loop=loop or EventLoop(), state=STATE, limit=limit
    )
    outcome = a_runner.run(attempt)
    assert current.get() is None
    return outcome


def raising(error: BaseException | type[BaseException]) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def returning(value: object) -> Callable[[], Any]:
    def work() -> Any:
        return value

    return work


# ---------------------------------------------------------------- returning


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"), (0, "0"), ("", '""'), (False, "false"), ([], "[]"), ({}, "{}"),
        (date(2026, 1, 1), '"2026-01-01"'), ({"a": (1, None)}, '{"a":[1,null]}'), ({1}, "[1]"),
    ],
)  # fmt: skip
def test_a_result_is_recorded_as_json(value: object, text: str) -> None:
    assert ended(returning(value)) == Completed(text)


class Hostile:
    def __repr__(self) -> str:
        raise SystemExit("from repr")

    __str__ = __repr__


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (math.nan, "has nan at $"),
        ({"a": [math.inf]}, "has inf at $.a[0]"),
        (object(), "cannot be stored as JSON: object has no place in JSON"),
        (ENDLESS, "contains itself"),
        ("a\0b", "contains the character NUL"),
        ("\ud800", "cannot be stored as JSON"),
        ("x" * 100_000_000, "is 100,000,002 bytes of JSON; the limit is 1,000,000"),
        ((i for i in "a"), "generator has no place in JSON"),
        (lambda: None, "function has no place in JSON"),
        (b"x" * 2_000_000, "bytes of JSON; the limit is"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_result_that_cannot_be_stored_fails_at_once(value: object, problem: str) -> None:
    outcome = ended(returning(value), max_attempts=9)
    assert isinstance(outcome, Failed)
    assert outcome.error.type == "PayloadError"
    assert outcome.error.message.startswith("The result of 'work' ")
    assert problem in outcome.error.message


def test_a_result_whose_repr_exits_the_interpreter_fails_alone() -> None:
    assert isinstance(ended(returning(Hostile()), max_attempts=1), Failed)


def test_a_plain_function_that_returns_an_awaitable_is_told_so() -> None:
    async def inner() -> int:
        return 1

    def work() -> Any:
        return inner()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = ended(work, max_attempts=9)
        gc.collect()
    assert isinstance(outcome, Failed)
    assert outcome.error.message == "it returned an awaitable; define it with async def"


# ---------------------------------------------------------------- payloads and contexts


def test_a_payload_that_does_not_fit_fails_at_once_and_names_the_key() -> None:
    def work(day: date) -> None: ...

    outcome = ended(work, '{"day": "soon"}', max_attempts=9)
    assert isinstance(outcome, Failed)
    assert outcome.error.type == "PayloadError"
    assert "$.day" in outcome.error.message


def test_unknown_keys_are_dropped() -> None:
    def work(a: int) -> int:
        return a

    assert ended(work, '{"a": 1, "newer": 2}') == Completed("1")


def test_a_payload_error_raised_by_the_task_itself_is_an_ordinary_failure() -> None:
    assert isinstance(ended(raising(PayloadError("of another task"))), Retrying)


def test_a_model_that_exits_while_it_validates_fails_its_attempt() -> None:
    class Model:
        @classmethod
        def model_validate(cls, value: Any) -> "Model":
            raise SystemExit(1)

    def work(a): ...  # type: ignore[no-untyped-def]

    work.__annotations__["a"] = Model
    assert isinstance(ended(work, '{"a": 1}', max_attempts=1), Failed)


def test_a_task_learns_who_it_is() -> None:
    def work(a: int, ctx: Context[object]) -> list[Any]:
        assert (ctx.conductor, ctx.state) == (CONDUCTOR, STATE)
        attempt = current.get()
        assert attempt is not None
        assert ctx.execution_id == attempt.claimed.id
        return [ctx.runs, a]

    assert ended(work, '{"a": 5}') == Completed("[1,5]")


def test_an_async_task_learns_who_it_is(loop: EventLoop) -> None:
    async def work(ctx: AsyncContext[object], a: int) -> list[Any]:
        await asyncio.sleep(0)
        attempt = current.get()
        assert attempt is not None
        assert ctx.execution_id == attempt.claimed.id
        return [ctx.runs, a]

    assert ended(work, '{"a": 5}', loop=loop) == Completed("[1,5]")


def test_a_name_that_is_not_served_is_handed_back() -> None:
    a_runner = Runner(TaskSet(), conductor=CONDUCTOR, loop=EventLoop(), state=None, limit=1)
    assert a_runner.run(Attempt(claimed())) == HandedBack(1.0)
    assert a_runner.timeout_of(claimed(timeout=3.0)) == 3.0
    assert a_runner.timeout_of(claimed()) is None


def test_the_timeout_of_an_invocation_beats_the_tasks() -> None:
    made = task(name="work", timeout=timedelta(seconds=5))(returning(1))
    a_runner = Runner(TaskSet([made]), conductor=CONDUCTOR, loop=EventLoop(), state=None, limit=1)
    assert a_runner.timeout_of(claimed()) == 5.0
    assert a_runner.timeout_of(claimed(timeout=1.5)) == 1.5


def test_what_an_outer_attempt_was_is_restored() -> None:
    outer = Attempt(claimed())
    token = current.set(outer)
    made = task(name="work")(raising(KeyboardInterrupt))
    Runner(TaskSet([made]), conductor=CONDUCTOR, loop=EventLoop(), state=None, limit=1).run(
        Attempt(claimed())
    )
    assert current.get() is outer
    current.reset(token)


# ---------------------------------------------------------------- raising


class Custom(BaseException):
    pass


@pytest.mark.parametrize(
    ("error", "name", "message"),
    [
        (ValueError("no"), "ValueError", "no"),
        (KeyError("k"), "KeyError", "'k'"),
        (Exception, "Exception", ""),
        (SystemExit(3), "SystemExit", "3"),
        (SystemExit, "SystemExit", ""),
        (KeyboardInterrupt(), "KeyboardInterrupt", ""),
        (GeneratorExit("g"), "GeneratorExit", "g"),
        (StopIteration(1), "StopIteration", "1"),
        (MemoryError(), "MemoryError", ""),
        (Custom("c"), f"{__name__}.Custom", "c"),
        (asyncio.CancelledError(), "asyncio.exceptions.CancelledError", ""),
        (TimeoutError("t"), "TimeoutError", "t"),
        (TaskTimeout("t"), "TimeoutError", "t"),
        (Retry(), "Retry", "retry"),
        (BaseExceptionGroup("g", [SystemExit(1)]), "BaseExceptionGroup", "g (1 sub-exception)"),
    ],
    ids=repr,
)
def test_whatever_is_raised_is_a_failure_of_that_attempt(
    error: Any, name: str, message: str
) -> None:
    first = ended(raising(error), retry=[7], max_attempts=2)
    assert isinstance(first, Retrying)
    assert (first.delay, first.counts) == (7.0, True)
    assert first.error is not None
    assert (first.error.type, first.error.message) == (name, message)
    assert first.error.traceback is not None
    assert "test_runner.py" in first.error.traceback
    assert "runner.py" not in first.error.traceback.replace("test_runner.py", "")
    last = ended(raising(error), retry=[7], max_attempts=2, failures=1)
    assert isinstance(last, Failed)
    assert last.error.type == name


def test_endless_recursion_is_a_failure() -> None:
    def work(n: int = 0) -> int:
        return work(n + 1)

    outcome = ended(work, max_attempts=1)
    assert isinstance(outcome, Failed)
    assert outcome.error.type == "RecursionError"
    assert "Previous line repeated" in str(outcome.error.traceback)


def test_max_attempts_counts_failures_and_nothing_else() -> None:
    for failures in range(4):
        outcome = ended(raising(ValueError), max_attempts=4, failures=failures)
        assert isinstance(outcome, Failed if failures == 3 else Retrying)
    assert isinstance(ended(raising(ValueError), max_attempts=1), Failed)


def test_fail_ends_it_whatever_is_left() -> None:
    outcome = ended(raising(Fail("no such customer")), max_attempts=9)
    assert isinstance(outcome, Failed)
    assert (outcome.error.type, outcome.error.message) == ("Fail", "no such customer")


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (None, None), ("", None), ("not needed", "not needed"), ("a\0b", "a\\0b"),
        ("\ud800", "\\ud800"), (ValueError("odd"), "odd"), (5, "5"),
    ],
)  # fmt: skip
def test_cancel_tells_its_reason(reason: Any, told: str | None) -> None:
    assert ended(raising(Cancel(reason))) == Cancelled(told)


def test_released_hands_back() -> None:
    assert ended(raising(Released("shutdown")), max_attempts=1) == HandedBack(0.0)


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [
        (5, 5.0), (0, 0.0), (timedelta(minutes=1), 60.0), (-3, 0.0), (math.nan, 0.0),
        (math.inf, registry.LONGEST), (1e300, registry.LONGEST),
    ],
)  # fmt: skip
def test_retry_says_when_and_keeps_to_what_the_database_can_hold(
    delay: Any, seconds: float
) -> None:
    counted = ended(raising(Retry(delay)), max_attempts=2)
    assert isinstance(counted, Retrying)
    assert (counted.delay, counted.counts) == (seconds, True)
    snoozed = ended(raising(Retry(delay, counts=False)), max_attempts=1, failures=5)
    assert snoozed == Retrying(seconds, None, counts=False)


def test_a_retry_that_counts_is_a_failure() -> None:
    assert isinstance(ended(raising(Retry(5)), max_attempts=2, failures=1), Failed)


def test_without_a_delay_the_tasks_own_backoff_holds() -> None:
    counted = ended(raising(Retry()), retry=[1, 20], failures=1)
    snoozed = ended(raising(Retry(counts=False)), retry=[1, 20], failures=1, max_attempts=1)
    assert isinstance(counted, Retrying)
    assert (counted.delay, counted.counts) == (20.0, True)
    assert snoozed == Retrying(20.0, None, counts=False)


@pytest.mark.parametrize("end", [Cancel("c"), Released("r"), Fail("f"), Retry(5)])
def test_a_task_group_does_not_hide_how_a_task_ends_itself(end: BaseException) -> None:
    group = BaseExceptionGroup("g", [BaseExceptionGroup("h", [end]), end])
    alone, wrapped = ended(raising(end)), ended(raising(group))
    assert type(wrapped) is type(alone)
    mixed = ended(raising(BaseExceptionGroup("g", [end, ValueError("real trouble")])))
    assert isinstance(mixed, Retrying)
    assert mixed.error is not None
    assert "real trouble" in str(mixed.error.traceback)


# ---------------------------------------------------------------- policies


def delay_of(outcome: Outcome) -> float:
    assert isinstance(outcome, Retrying)
    return outcome.delay


def test_a_list_is_gone_through_and_its_last_repeats() -> None:
    delays = [
        delay_of(ended(raising(ValueError), retry=[1, timedelta(seconds=2)], failures=n,
                       max_attempts=9))
        for n in range(4)
    ]  # fmt: skip
    assert delays == [1.0, 2.0, 2.0, 2.0]


def test_the_default_and_a_backoff_grow() -> None:
    assert 13.5 <= delay_of(ended(raising(ValueError))) <= 16.5
    assert 27 <= delay_of(ended(raising(ValueError), failures=1)) <= 33
    backoff = Backoff(1, jitter=0)
    assert delay_of(ended(raising(ValueError), retry=backoff, failures=3, max_attempts=9)) == 8


def test_a_policy_is_asked_with_the_failures_and_the_error() -> None:
    asked: list[Any] = []

    def policy(failures: int, error: BaseException) -> float | None:
        asked.append((failures, str(error)))
        return 3 if failures < 2 else None

    assert delay_of(ended(raising(ValueError("v")), retry=policy)) == 3
    gave_up = ended(raising(ValueError("w")), retry=policy, failures=1)
    assert isinstance(gave_up, Failed)
    assert (gave_up.error.type, asked) == ("ValueError", [(1, "v"), (2, "w")])


@pytest.mark.parametrize("answer", ["soon", -1, math.inf, SystemExit(1), ZeroDivisionError()])
def test_a_policy_that_goes_wrong_fails_the_execution_and_tells_both_errors(answer: Any) -> None:
    def policy(failures: int, error: BaseException) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    outcome = ended(raising(ValueError("the task's own")), retry=policy)
    assert isinstance(outcome, Failed)
    assert outcome.error.type == "TaskDefinitionError"
    assert "policy" in outcome.error.message
    assert "the task's own" in str(outcome.error.traceback)


def test_a_policy_that_asks_for_an_age_gets_a_century() -> None:
    assert delay_of(ended(raising(ValueError), retry=lambda *_: 1e300)) == registry.LONGEST


# ---------------------------------------------------------------- what an error may look like


@pytest.mark.parametrize(
    "worse", [ValueError, SystemExit, KeyboardInterrupt, RecursionError, Custom, GeneratorExit]
)
def test_an_error_that_cannot_be_told_is_a_failure_all_the_same(
    worse: type[BaseException],
) -> None:
    class Rude(Exception):
        def __str__(self) -> str:
            raise worse

        __repr__ = __str__

    outcome = ended(raising(Rude()), max_attempts=1)
    assert isinstance(outcome, Failed)
    assert outcome.error.message == f"(its __str__ raises {worse.__name__})"
    assert outcome.error.type.endswith("Rude")
    assert outcome.error.traceback


def test_a_str_that_is_none_is_a_failure_too() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            return cast("str", None)

    outcome = ended(raising(Odd()), max_attempts=1)
    assert isinstance(outcome, Failed)
    assert outcome.error.message == "(its __str__ raises TypeError)"


def test_texts_are_free_of_nul_and_lone_surrogates() -> None:
    hostile = type("Error", (Exception,), {"__qualname__": "E\0\ud800" + "x" * 9999})
    outcome = ended(raising(hostile("a\0b \ud800 \udfff ä")), max_attempts=1)
    assert isinstance(outcome, Failed)
    for text in (outcome.error.type, outcome.error.message, outcome.error.traceback):
        assert text is not None
        assert "\0" not in text
        assert text.encode()
    assert outcome.error.message == "a\\0b \\ud800 \\udfff ä"
    assert len(outcome.error.type) < 600


def test_a_huge_message_is_cut_and_the_traceback_keeps_both_ends() -> None:
    outcome = ended(raising(ValueError("begin " + "x" * 1_000_000 + " end")), max_attempts=1)
    assert isinstance(outcome, Failed)
    message, text = outcome.error.message, str(outcome.error.traceback)
    assert len(message) < failure.MESSAGE_LIMIT + 10
    assert message.startswith("begin x")
    assert message.endswith("x end")
    assert len(text) < failure.TRACEBACK_LIMIT + 10
    assert text.startswith("Traceback (most recent call last)")
    assert "in work" in text
    assert text.endswith("x end\n")


def test_a_traceback_shows_the_cause_and_starts_in_the_task() -> None:
    def work() -> None:
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError as error:
            raise ValueError("so it fails") from error

    outcome = ended(work, max_attempts=1)
    assert isinstance(outcome, Failed)
    text = str(outcome.error.traceback)
    assert text.index("ZeroDivisionError") < text.index("direct cause") < text.index("so it fails")
    assert "conductor_cli" not in text


def test_errors_with_endless_chains_are_told() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert isinstance(ended(raising(first), max_attempts=1), Failed)


def test_an_outcome_holds_nothing_of_the_task_alive() -> None:
    import weakref

    class Large:
        pass

    seen: list[Any] = []

    def work() -> None:
        large = Large()
        seen.append(weakref.ref(large))
        raise ValueError(large)

    outcome = ended(work, max_attempts=1)
    gc.collect()
    assert isinstance(outcome, Failed)
    assert seen[0]() is None


# ---------------------------------------------------------------- asked to stop


def test_a_task_that_obeys_ends_as_it_was_asked() -> None:
    def work(ctx: Context) -> None:
        ctx.checkpoint()

    def asked(why: Abort) -> Outcome:
        return ended(work, before=lambda a: a.signal.set(why, "told"), max_attempts=2, retry=[1])

    assert asked(Abort.CANCELLED) == Cancelled("told")
    assert asked(Abort.SHUTDOWN) == HandedBack(0.0)
    assert asked(Abort.LOST) == HandedBack(0.0)
    timed_out = asked(Abort.TIMEOUT)
    assert isinstance(timed_out, Retrying)
    assert timed_out.error is not None
    assert (timed_out.error.type, timed_out.error.message) == ("TimeoutError", "told")


@pytest.mark.parametrize("why", list(Abort))
def test_a_task_that_pays_no_heed_completes_unless_its_time_is_up(why: Abort) -> None:
    outcome = ended(returning(1), before=lambda a: a.signal.set(why), max_attempts=1)
    if why is Abort.TIMEOUT:
        assert isinstance(outcome, Failed)
        assert outcome.error.type == "TimeoutError"
    else:
        assert outcome == Completed("1")


# ---------------------------------------------------------------- async tasks


@pytest.mark.parametrize(
    "error", [ValueError("v"), SystemExit(1), KeyboardInterrupt(), GeneratorExit(), Custom()]
)
def test_what_an_async_task_raises_ends_it_and_not_the_loop(
    loop: EventLoop, error: BaseException
) -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise error

    async def after() -> str:
        return "alive"

    outcome = ended(work, loop=loop, max_attempts=1)
    assert isinstance(outcome, Failed)
    assert outcome.error.type.endswith(type(error).__name__)
    assert ended(after, loop=loop) == Completed('"alive"')


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
def test_an_exit_inside_a_tasks_own_asyncio_task_does_not_end_the_loop(
    loop: EventLoop, error: BaseException
) -> None:
    async def inner() -> None:
        raise error

    async def work() -> None:
        await asyncio.create_task(inner())

    async def after() -> str:
        return "alive"

    outcome = ended(work, loop=loop, max_attempts=1)
    assert isinstance(outcome, Failed)
    assert outcome.error.type == type(error).__name__
    assert loop.is_alive
    assert ended(after, loop=loop) == Completed('"alive"')


@pytest.mark.parametrize(
    ("why", "kind"),
    [
        (Abort.CANCELLED, Cancelled),
        (Abort.LOST, HandedBack),
        (Abort.TIMEOUT, Retrying),
    ],
)
def test_an_async_task_is_cancelled_where_it_waits_and_cleans_up_first(
    loop: EventLoop, why: Abort, kind: type
) -> None:
    told: list[str] = []
    attempts: list[Attempt] = []

    async def work() -> None:
        threading.Thread(target=attempts[0].signal.set, args=(why,)).start()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            told.append("cleaned up")

    outcome = ended(work, loop=loop, before=attempts.append)
    assert isinstance(outcome, kind)
    assert told == ["cleaned up"]


def test_on_shutdown_an_async_task_goes_on_until_one_insists(loop: EventLoop) -> None:
    attempts: list[Attempt] = []

    async def work() -> None:
        attempts[0].signal.set(Abort.SHUTDOWN)
        await asyncio.sleep(0.01)  # is not cancelled
        assert attempts[0].cancel is not None
        attempts[0].cancel()
        await asyncio.sleep(60)

    assert ended(work, loop=loop, before=attempts.append) == HandedBack(0.0)


def test_an_async_task_asked_before_it_begins_is_cancelled_at_its_first_await(
    loop: EventLoop,
) -> None:
    async def work() -> None:
        await asyncio.sleep(60)

    outcome = ended(work, loop=loop, before=lambda a: a.signal.set(Abort.CANCELLED))
    assert outcome == Cancelled(None)


def test_a_cancellation_of_its_own_is_a_failure(loop: EventLoop) -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    assert isinstance(ended(work, loop=loop), Retrying)


def test_an_async_task_that_swallows_its_cancellation_completes(loop: EventLoop) -> None:
    attempts: list[Attempt] = []

    async def work() -> str:
        try:
            attempts[0].signal.set(Abort.CANCELLED)
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "done all the same"
        return "never"

    outcome = ended(work, loop=loop, before=attempts.append)
    assert outcome == Completed('"done all the same"')


def test_checkpoints_in_a_task_group_hand_back(loop: EventLoop) -> None:
    async def work(ctx: AsyncContext) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.checkpoint())
            group.create_task(ctx.checkpoint())

    outcome = ended(work, loop=loop, before=lambda a: a.signal.set(Abort.SHUTDOWN))
    assert outcome == HandedBack(0.0)


def test_async_tasks_run_at_the_same_time_and_keep_apart(loop: EventLoop) -> None:
    together = threading.Barrier(5)
    outcomes: list[Outcome] = []

    async def work(ctx: AsyncContext) -> bool:
        await asyncio.to_thread(together.wait, 5)
        attempt = current.get()
        return attempt is not None and attempt.claimed.id == ctx.execution_id

    threads = [
        threading.Thread(target=lambda: outcomes.append(ended(work, loop=loop))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert outcomes == [Completed("true")] * 5


def test_a_loop_that_never_ran_stops_and_one_stops_twice() -> None:
    idle, used = EventLoop(), EventLoop()
    idle.stop()
    assert idle.join(Deadline(1))
    ended(functools.partial(asyncio.sleep, 0), '{"result": 1}', loop=used)
    for _ in range(2):
        used.stop()
        assert used.join(Deadline(5))


# ---------------------------------------------------------------- raising into a thread


def in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def until(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0)


def test_a_timeout_ends_a_loop_that_never_looks_up() -> None:
    attempts: list[Attempt] = []

    def work() -> None:
        while True:
            pass

    def guard() -> None:
        until(lambda: attempts and attempts[0].thread_id)
        attempts[0].signal.set(Abort.TIMEOUT)
        assert runner.interrupt(attempts[0])

    thread = in_thread(guard)
    outcome = ended(work, before=attempts.append, timeout=60.0, max_attempts=1)
    thread.join()
    assert isinstance(outcome, Failed)
    assert outcome.error.type == "TimeoutError"
    assert "in work" in str(outcome.error.traceback)


def test_a_task_may_catch_its_timeout_and_is_timed_out_all_the_same() -> None:
    attempts: list[Attempt] = []

    def work() -> str:
        try:
            attempts[0].signal.set(Abort.TIMEOUT)
            runner.interrupt(attempts[0])
            while True:
                pass
        except TimeoutError:
            return "too late"

    outcome = ended(work, before=attempts.append, timeout=60.0, max_attempts=1)
    assert isinstance(outcome, Failed)
    assert outcome.error.type == "TimeoutError"


def test_only_a_task_with_a_timeout_can_be_interrupted_and_only_while_it_runs() -> None:
    attempts: list[Attempt] = []

    def work() -> bool:
        return runner.interrupt(attempts[-1])

    assert ended(work, before=attempts.append) == Completed("false")
    assert not runner.interrupt(Attempt(claimed()))
    assert isinstance(ended(work, before=attempts.append, timeout=9.0), Retrying)
    assert attempts[-1].thread_id is None


def test_it_is_raised_once_however_often_it_is_asked() -> None:
    attempt = Attempt(claimed())
    raised = 0

    def work() -> None:
        nonlocal raised
        for _ in range(50):
            try:
                assert runner.interrupt(attempt)
                for _ in range(10):
                    pass
            except TaskTimeout:
                raised += 1

    runner.interruptible(attempt, work)
    assert raised == 1


def races(least: int, arrived: list[bool]) -> Iterator[int]:
    """Numbers of rounds: ``least`` of them, and until some have met."""
    limit = time.monotonic() + 30
    for number in itertools.count():
        if (number >= least and len(arrived) >= 20) or time.monotonic() > limit:
            return
        yield number


def test_a_timeout_never_arrives_after_the_call_has_returned() -> None:
    """Thousands of races between a task's return and the raise into its thread."""
    rounds, stray = 10_000, 0
    attempts: list[Attempt] = [Attempt(claimed())]
    done = threading.Event()
    interval = sys.getswitchinterval()

    def guard() -> None:
        while not done.is_set():
            runner.interrupt(attempts[-1])

    thread = in_thread(guard)
    arrived: list[bool] = []
    sys.setswitchinterval(1e-6)
    try:
        for number in races(rounds, arrived):
            try:
                attempt = Attempt(claimed_once)
                attempts[0] = attempt
                try:
                    runner.interruptible(attempt, functools.partial(busy, number % 400))
                except TaskTimeout:
                    arrived.append(True)
                for _ in range(20):  # where a late one would arrive
                    pass
            except TaskTimeout:
                stray += 1
    finally:
        sys.setswitchinterval(interval)
        done.set()
        thread.join()
    assert stray == 0
    assert arrived, "the race was never run"


claimed_once = claimed()


def busy(rounds: int) -> None:
    for _ in range(rounds):
        pass


def test_no_timeout_arrives_inside_a_shielded_region() -> None:
    rounds, torn, length = 5_000, 0, 0
    attempts: list[Attempt] = [Attempt(claimed())]
    done = threading.Event()
    interval = sys.getswitchinterval()

    def guard() -> None:
        while not done.is_set():
            runner.interrupt(attempts[-1])

    def work() -> None:
        nonlocal torn
        busy(length)
        with context.shielded():
            try:
                for _ in range(30):
                    pass
                with context.shielded():
                    pass
                for _ in range(30):
                    pass
            except TaskTimeout:
                torn += 1

    thread = in_thread(guard)
    arrived: list[bool] = []
    sys.setswitchinterval(1e-6)
    try:
        for number in races(rounds, arrived):
            length = number % 400
            attempt = Attempt(claimed_once)
            token = current.set(attempt)
            attempts[0] = attempt
            try:
                runner.interruptible(attempt, work)
            except TaskTimeout:
                arrived.append(True)
            finally:
                current.reset(token)
            assert not attempt.shielded
    finally:
        sys.setswitchinterval(interval)
        done.set()
        thread.join()
    assert torn == 0
    assert arrived, "the race was never run"


@pytest.fixture
def slow_interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[Attempt], None]:
    """Starts an interrupt that stands still for a moment before it raises."""
    really, begun = runner._set_async_exc, threading.Event()

    def slowly(thread_id: int, error: type[BaseException] | None) -> None:
        if error is not None:
            begun.set()
            time.sleep(0.05)
        really(thread_id, error)

    def start(attempt: Attempt) -> None:
        in_thread(lambda: runner.interrupt(attempt))
        assert begun.wait(5)

    monkeypatch.setattr(runner, "_set_async_exc", slowly)
    return start


def test_a_call_that_ends_while_a_timeout_is_being_raised_waits_for_it(
    slow_interrupt: Callable[[Attempt], None],
) -> None:
    attempt = Attempt(claimed())
    with contextlib.suppress(TaskTimeout):
        runner.interruptible(attempt, lambda: slow_interrupt(attempt))
    assert attempt.interrupted
    busy(1000)  # where a late one would arrive


def test_a_shield_that_begins_while_a_timeout_is_being_raised_is_not_entered(
    slow_interrupt: Callable[[Attempt], None],
) -> None:
    attempts: list[Attempt] = []
    entered: list[bool] = []

    def work() -> None:
        slow_interrupt(attempts[0])
        with context.shielded():
            entered.append(True)

    outcome = ended(work, before=attempts.append, timeout=60.0, max_attempts=1)
    assert isinstance(outcome, Failed)
    assert outcome.error.type == "TimeoutError"
    assert entered == []


def test_what_was_put_off_by_a_shield_can_be_raised_after_it() -> None:
    attempts: list[Attempt] = []
    seen: list[bool] = []

    def work() -> None:
        with context.shielded():
            seen.append(runner.interrupt(attempts[0]))
        seen.append(runner.interrupt(attempts[0]))
        while True:
            pass

    outcome = ended(work, before=attempts.append, timeout=60.0, max_attempts=1)
    assert isinstance(outcome, Failed)
    assert seen[0] is False


def test_a_shield_outside_of_a_task_is_nothing() -> None:
    with context.shielded():
        assert current.get() is None


def test_a_shield_ends_with_an_error_inside() -> None:
    attempts: list[Attempt] = []

    def work() -> None:
        with pytest.raises(ValueError, match="inside"), context.shielded():
            raise ValueError("inside")
        assert not attempts[0].shielded
        runner.interrupt(attempts[0])

    outcome = ended(work, before=attempts.append, timeout=60.0, max_attempts=1)
    assert isinstance(outcome, Failed)
    assert outcome.error.type == "TimeoutError"


def test_a_shield_of_another_thread_is_not_this_ones() -> None:
    def work() -> bool:
        attempt, shielded = current.get(), []
        assert attempt is not None

        def other() -> None:
            with context.shielded():
                shielded.append(attempt.shielded)

        run = contextvars.copy_context().run
        in_thread(lambda: run(other)).join()
        return shielded == [False]

    assert ended(work, timeout=60.0) == Completed("true")


def test_running_many_keeps_no_memory() -> None:
    made = task(name="work")(raising(ValueError))
    a_runner = Runner(TaskSet([made]), conductor=CONDUCTOR, loop=EventLoop(), state=None, limit=9)
    for _ in range(50):
        a_runner.run(Attempt(claimed_once))
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(300):
            a_runner.run(Attempt(claimed_once))
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


def test_a_context_variable_a_task_sets_is_its_own(loop: EventLoop) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("v", default="nobody's")

    async def work() -> str:
        before = variable.get()
        variable.set("somebody's")
        return before

    assert ended(work, loop=loop) == ended(work, loop=loop) == Completed('"nobody\'s"')


def test_describing_an_error_without_a_traceback() -> None:
    error = runner.describe(ValueError("never raised"))
    assert (error.type, error.message, error.traceback) == ("ValueError", "never raised", None)


def test_a_traceback_that_cannot_be_formatted_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(traceback, "format_exception", broken)
        outcome = ended(raising(ValueError("x")), max_attempts=1)
    assert isinstance(outcome, Failed)
    assert outcome.error.traceback == "(its traceback raises SystemExit)"
