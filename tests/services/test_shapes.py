"""Shapes of durable code, killed at every boundary.

What each shape must have done is computed from what the journal says stands, by the shape's own
``expect``; what holds for any code is in ``tests.support.lives.judge``.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import msgspec
import pytest

from conductor_cli import (
    AsyncContext,
    ChildFailed,
    Context,
    EventTimedOut,
    ExecutionNotFound,
    PayloadError,
    Retry,
    Step,
    StepError,
    StepTimedOut,
    task,
)
from conductor_cli.errors import Suspension
from conductor_cli.journal import Journal, Line
from conductor_cli.models import Cancelled, Completed, Failed
from conductor_cli.steps import StepCall
from tests.support.lives import Broken, Crash, Lives, World, judge, lives

ALWAYS = 10_000


@dataclass(frozen=True)
class Shape:
    """A task's body, what fails in it, and how it ends: its result, or a part of its error."""

    body: Callable[..., Any]
    expect: Callable[[World], Any]
    fails: dict[str, int] = field(default_factory=dict)


class Error(str):
    """A part of the message of an execution that has failed."""


PLAIN: dict[str, Shape] = {}
ASYNC: dict[str, Shape] = {}


def shape(expect: Any, **fails: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``expect``: the result, or a function of the world that tells it."""

    def keep(body: Callable[..., Any]) -> Callable[..., Any]:
        home = ASYNC if asyncio.iscoroutinefunction(body) else PLAIN
        told = expect if callable(expect) else lambda _: expect
        home[body.__name__] = Shape(body, told, fails)
        return body

    return keep


# ---------------------------------------------------------------- one after the other


@shape(["a-0!", "a-1!", "a-2!"])
def a_loop(ctx: Context, w: World) -> Any:
    return [ctx.step(f"a-{i}", w.do, f"a-{i}") for i in range(3)]


@shape(lambda w: "refund!" if "ship" in w.stands else "ship!", ship=1)
def a_caught_failure(ctx: Context, w: World) -> Any:
    try:
        return ctx.step("ship", w.do, "ship")
    except Broken as error:
        w.caught("ship", error)
        return ctx.step("refund", w.do, "refund")


@shape("both", ship=ALWAYS)
def a_failure_that_stands_is_raised_again(ctx: Context, w: World) -> Any:
    try:
        ctx.step("ship", w.do, "ship")
    except Broken as error:
        w.caught("ship", error)
    ctx.step("refund", w.do, "refund")
    ctx.sleep("a while", 60)
    ctx.step("mail", w.do, "mail")
    return "both"


@shape(Error("stands, since after it the task went on to 'unlock'"), flaky=ALWAYS)
def a_finally_that_goes_on(ctx: Context, w: World) -> Any:
    try:
        return ctx.step("flaky", w.do, "flaky")
    finally:
        ctx.step("unlock", w.do, "unlock")


@shape("work!", work=1)
def a_finally_without_calls(ctx: Context, w: World) -> Any:
    try:
        return ctx.step("work", w.do, "work")
    finally:
        w.note("cleanup")


@shape(Error("went on to 'note'"), work=ALWAYS)
def another_error_raised_from_it(ctx: Context, w: World) -> Any:
    try:
        return ctx.step("work", w.do, "work")
    except Broken as error:
        ctx.step("note", w.do, "note")
        raise RuntimeError("no work") from error


@shape(lambda w: "second", work=ALWAYS)
def another_error_raised_beside_it(ctx: Context, w: World) -> Any:
    try:
        ctx.step("work", w.do, "work")
    except Broken:
        ctx.step("note", w.do, "note")
        w.tries["body"] = w.tries.get("body", 0) + 1
        if w.tries["body"] < 3:
            raise RuntimeError("for a moment") from None
    return "second"


@shape("a!", a=2)
def a_retry_of_the_task(ctx: Context, w: World) -> Any:
    return ctx.step("a", w.do, "a")


@shape("a!", a=2)
def a_retry_inside(ctx: Context, w: World) -> Any:
    return ctx.step(Step("a", max_attempts=3, retry=[0.01]), w.do, "a")


@shape("b!", a=ALWAYS)
def a_retry_inside_that_ends(ctx: Context, w: World) -> Any:
    try:
        return ctx.step(Step("a", max_attempts=2, retry=[0.01]), w.do, "a")
    except Broken as error:
        w.caught("a", error)
        return ctx.step("b", w.do, "b")


@shape(["a-1!", 1], **{"a-0": ALWAYS})
def a_retry_outside(ctx: Context, w: World) -> Any:
    for i in range(3):
        try:
            return [ctx.step(f"a-{i}", w.do, f"a-{i}"), i]
        except Broken as error:
            w.caught(f"a-{i}", error)
    return None


@shape("left", enter=0)
def a_with_block(ctx: Context, w: World) -> Any:
    @contextlib.contextmanager
    def locked() -> Iterator[None]:
        ctx.step("enter", w.do, "enter")
        yield
        ctx.step("leave", w.do, "leave")

    with locked():
        ctx.step("inside", w.do, "inside")
    return "left"


@shape("else", a=0)
def an_else(ctx: Context, w: World) -> Any:
    try:
        ctx.step("a", w.do, "a")
    except Broken:
        return "except"
    else:
        ctx.step("b", w.do, "b")
        return "else"


@shape(["g-0!", "g-1!", "g-2!"])
def a_generator(ctx: Context, w: World) -> Any:
    def each() -> Iterator[str]:
        for i in range(3):
            yield ctx.step(f"g-{i}", w.do, f"g-{i}")

    return list(each())


@shape("done")
def a_generator_closed_in_time(ctx: Context, w: World) -> Any:
    def each() -> Iterator[str]:
        try:
            yield ctx.step("first", w.do, "first")
            yield "never"
        finally:
            ctx.step("last", w.do, "last")

    found = each()
    next(found)
    found.close()
    ctx.step("after", w.do, "after")
    return "done"


@shape("done")
def a_helper_used_twice(ctx: Context, w: World) -> Any:
    def pay(who: str) -> str:
        return ctx.step(f"pay-{who}", w.do, f"pay-{who}")

    pay("a")
    pay("b")
    return "done"


@shape(Error("used twice"))
def one_name_twice_is_swallowed(ctx: Context, w: World) -> Any:
    ctx.step("a", w.do, "a")
    with contextlib.suppress(Exception):
        ctx.step("a", w.do, "again")
    with contextlib.suppress(Exception):
        ctx.step("b", w.do, "b")
    return "swallowed"


@shape(Error("used twice"))
def a_step_error_made_another(ctx: Context, w: World) -> Any:
    ctx.step("a", w.do, "a")
    try:
        ctx.step("a", w.do, "again")
    except StepError:
        raise ValueError("not this one") from None


@shape("done", one=ALWAYS, two=ALWAYS)
def two_failures_one_after_the_other(ctx: Context, w: World) -> Any:
    for name in ("one", "two"):
        try:
            ctx.step(name, w.do, name)
        except Broken as error:
            w.caught(name, error)
    ctx.step("then", w.do, "then")
    return "done"


@shape("paid", pay=1)
def a_transaction(ctx: Context, w: World) -> Any:
    ctx.step("before", w.do, "before")
    ctx.transact("pay", lambda conn: w.do("pay"))
    ctx.step("after", w.do, "after")
    return "paid"


@shape(Error("no place in JSON"))
def a_result_that_cannot_be_stored(ctx: Context, w: World) -> Any:
    with contextlib.suppress(Exception):
        ctx.step("a", lambda: w.do("a") and object())
    ctx.step("b", w.do, "b")
    return "stored"


def _unless_slept(w: World) -> Any:
    """Killed right after the sleep was written, the next run finds it over."""
    slept = next(entry[0] for entry in w.log if entry[1:] == ("wrote", "nap", "p"))
    return Error("suspended at 'nap'") if slept == w.run else None


@shape(_unless_slept)
def a_sleep_turned_into_an_error(ctx: Context, w: World) -> Any:
    ctx.step("a", w.do, "a")
    try:
        ctx.sleep("nap", 60)
    except BaseException as error:
        raise RuntimeError("order failed") from error


@shape("late")
def an_event_that_does_not_come(ctx: Context, w: World) -> Any:
    heard = ctx.subscribe("paid", "payment.settled")
    ctx.step("charge", w.do, "charge")
    try:
        heard.wait(timeout=60)
    except EventTimedOut as error:
        w.caught("paid", error)
        ctx.step("cancel", w.do, "cancel")
    return "late"


@shape("charge failed, heard", charge=ALWAYS)
def a_caught_failure_before_a_wait(ctx: Context, w: World) -> Any:
    heard = ctx.subscribe("paid", "payment.settled")
    told = "charge went"
    try:
        ctx.step("charge", w.do, "charge")
    except Broken as error:
        w.caught("charge", error)
        told = "charge failed"
    with contextlib.suppress(EventTimedOut):
        heard.wait(timeout=60)
    ctx.step("after", w.do, "after")
    return f"{told}, heard"


@shape("done", charge=1)
def a_failure_by_retry_leads_back(ctx: Context, w: World) -> Any:
    try:
        ctx.step("charge", w.do, "charge")
    except Broken:
        raise Retry(0) from None
    return "done"


@shape("returned")
def a_generator_closed_when_its_function_ends(ctx: Context, w: World) -> Any:
    def each() -> Iterator[str]:
        try:
            yield ctx.step("first", w.do, "first")
        finally:
            with contextlib.suppress(StepError, Suspension, Crash):
                ctx.step("late", w.do, "late")

    found = each()
    next(found)
    return "returned"


@shape("b!", a=ALWAYS)
def a_retry_on_other_errors_only(ctx: Context, w: World) -> Any:
    try:
        return ctx.step(Step("a", max_attempts=5, retry=[0], retry_on=OSError), w.do, "a")
    except Broken as error:
        w.caught("a", error)
        return ctx.step("b", w.do, "b")


@shape(Error("stands"), a=ALWAYS, b=ALWAYS)
def a_group_of_two_that_stand(ctx: Context, w: World) -> Any:
    errors = []
    for name in ("a", "b"):
        try:
            ctx.step(name, w.do, name)
        except Broken as error:
            w.caught(name, error)
            errors.append(error)
    ctx.step("then", w.do, "then")
    raise ExceptionGroup("both", errors)


@shape("second!", a=ALWAYS, b=1)
def a_group_with_one_that_is_open(ctx: Context, w: World) -> Any:
    errors = []
    for name in ("a", "b"):
        try:
            ctx.step(name, w.do, name)
        except Broken as error:
            w.caught(name, error)
            errors.append(error)
    if len(errors) == 2 and w.tries["b"] == 1:
        raise ExceptionGroup("both", errors)
    return ctx.step("second", w.do, "second")


@shape("slept", a=ALWAYS)
def a_failure_before_a_sleep(ctx: Context, w: World) -> Any:
    try:
        ctx.step("a", w.do, "a")
    except Broken as error:
        w.caught("a", error)
    ctx.sleep("nap", 60)
    ctx.step("b", w.do, "b")
    return "slept"


@shape("slept", a=ALWAYS)
def a_failure_before_a_child(ctx: Context, w: World) -> Any:
    try:
        ctx.step("a", w.do, "a")
    except Broken as error:
        w.caught("a", error)
    ctx.start("started", good, {})
    ctx.step("b", w.do, "b")
    return "slept"


@shape("then!")
def a_payload_that_does_not_fit(ctx: Context, w: World) -> Any:
    for name, call in (("c", ctx.invoke), ("d", ctx.start)):
        try:
            call(name, good, {"unknown": object()})
        except PayloadError as error:
            w.caught(name, error)
    return ctx.step("then", w.do, "then")


@shape("then!")
def a_wait_for_what_is_not_there(ctx: Context, w: World) -> Any:
    try:
        ctx.wait("nobody", UUID(int=1))
    except ExecutionNotFound as error:
        w.caught("nobody", error)
    ctx.sleep("nap", 60)
    return ctx.step("then", w.do, "then")


# ---------------------------------------------------------------- children


@task(name="good", queue="q", max_attempts=1)
def good(ctx: Context) -> str:
    return str(ctx.step("child", ctx.state.do, "good-child"))


@task(name="bad", queue="q", max_attempts=1)
def bad(ctx: Context) -> str:
    ctx.state.do("bad-child")
    raise ValueError("bad")


@shape("good-child!")
def a_child(ctx: Context, w: World) -> Any:
    ctx.step("before", w.do, "before")
    found = ctx.invoke("child", good, {})
    ctx.step("after", w.do, "after")
    return found


@shape("caught")
def a_child_that_fails(ctx: Context, w: World) -> Any:
    try:
        ctx.invoke("child", bad, {})
    except ChildFailed as error:
        w.caught("child", error)
        ctx.step("instead", w.do, "instead")
    return "caught"


@shape(Error("is decided and stands"))
def a_child_whose_failure_is_not_caught(ctx: Context, w: World) -> Any:
    ctx.step("before", w.do, "before")
    return ctx.invoke("child", bad, {})


# ---------------------------------------------------------------- threads


@shape("joined", **{"t-0": 1})
def threads_of_a_pool(ctx: Context, w: World) -> Any:
    def one(i: int) -> str:
        line = f"T{w.run}-{i}"
        w.start(line)
        try:
            return ctx.step(f"t-{i}", w.do, f"t-{i}", line)
        finally:
            w.ended(line)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(4)))
    ctx.step("then", w.do, "then")
    return "joined"


@shape("went on", t=ALWAYS)
def a_thread_whose_failure_is_caught(ctx: Context, w: World) -> Any:
    def one() -> None:
        line = f"T{w.run}"
        w.start(line)
        try:
            ctx.step("t", w.do, "t", line)
        except Broken as error:
            w.caught("t", error)
        except Crash:  # the process with all of its threads
            return
        finally:
            w.ended(line)

    thread = threading.Thread(target=one)
    thread.start()
    thread.join()
    ctx.step("then", w.do, "then")
    return "went on"


# ---------------------------------------------------------------- awaited


@shape(["a!", "b!", "c!"], b=1)
async def a_gather(ctx: AsyncContext, w: World) -> Any:
    async def one(name: str) -> str:
        line = f"{name}{w.run}"
        w.start(line)
        await asyncio.sleep(0.03 if name == "c" else 0)  # c begins when b has failed
        try:
            return await ctx.step(name, w.ado, name, line)
        finally:
            w.ended(line)

    found = await asyncio.gather(*(one(name) for name in "abc"), return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return found


@shape(["a!", None, "c!", "then!"], b=ALWAYS)
async def a_gather_whose_failure_is_kept(ctx: AsyncContext, w: World) -> Any:
    async def one(name: str) -> str:
        line = f"{name}{w.run}"
        w.start(line)
        try:
            return await ctx.step(name, w.ado, name, line)
        except Broken as error:
            w.caught(name, error)
            raise
        finally:
            w.ended(line)

    found = await asyncio.gather(*(one(name) for name in "abc"), return_exceptions=True)
    then = await ctx.step("then", w.do, "then")
    return [*(None if isinstance(each, Exception) else each for each in found), then]


@shape(Error("stands"), b=ALWAYS)
async def a_group_of_what_stands(ctx: AsyncContext, w: World) -> Any:
    async def one(name: str) -> str:
        line = f"{name}{w.run}"
        w.start(line)
        try:
            return await ctx.step(name, w.ado, name, line)
        finally:
            w.ended(line)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(one("b"))
    finally:
        await ctx.step("then", w.do, "then")


@shape("slow was cut", slow=0)
async def a_timeout_around_a_step(ctx: AsyncContext, w: World) -> Any:
    async def slow() -> None:
        await w.hang("slow")

    try:
        async with asyncio.timeout(0.1):
            await ctx.step("slow", slow)
    except TimeoutError:
        await ctx.step("instead", w.do, "instead")
        await ctx.sleep("nap", 60)
        await ctx.step("after", w.do, "after")
    return "slow was cut"


@shape("slow was cut")
async def a_step_cancelled_by_the_code(ctx: AsyncContext, w: World) -> Any:
    async def slow() -> None:
        await w.hang("slow", f"s{w.run}")

    async def beside() -> None:
        w.start(f"s{w.run}")
        try:
            await ctx.step("slow", slow)
        finally:
            w.ended(f"s{w.run}")

    begun = asyncio.create_task(beside())
    await asyncio.sleep(0.05)
    begun.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await begun
    await ctx.step("instead", w.do, "instead")
    await ctx.sleep("nap", 60)
    return "slow was cut"


@shape("instead!")
async def a_step_with_a_timeout(ctx: AsyncContext, w: World) -> Any:
    async def slow() -> None:
        await w.hang("slow")

    try:
        await ctx.step(Step("slow", timeout=0.05), slow)
    except StepTimedOut as error:
        w.caught("slow", error)
    return await ctx.step("instead", w.do, "instead")


@shape("finished")
async def a_branch_that_outlives_the_task(ctx: AsyncContext, w: World) -> Any:
    async def beside() -> None:
        await ctx.step("beside", w.ado, "beside", "beside")

    await ctx.step("first", w.do, "first")
    w.start("beside")
    begun = asyncio.create_task(beside())
    await asyncio.sleep(0.02)
    del begun
    return "finished"


@shape("went on", t=ALWAYS)
async def a_task_started_by_a_task(ctx: AsyncContext, w: World) -> Any:
    async def inner(line: str) -> None:
        w.start(line, f"outer{w.run}")
        try:
            await ctx.step("t", w.ado, "t", line)
        except Broken as error:
            w.caught("t", error)
        finally:
            w.ended(line)

    async def outer() -> None:
        line = f"outer{w.run}"
        w.start(line)
        await asyncio.create_task(inner(f"inner{w.run}"))
        await ctx.step("by outer", w.ado, "by outer", line)
        w.ended(line)

    await asyncio.create_task(outer())
    await ctx.step("then", w.do, "then")
    return "went on"


@shape(Error("used twice"))
async def a_step_error_in_a_branch(ctx: AsyncContext, w: World) -> Any:
    async def again() -> None:
        with contextlib.suppress(StepError):
            await ctx.step("a", w.ado, "a again")

    await ctx.step("a", w.ado, "a")
    await asyncio.create_task(again())
    return "unnoticed"


@shape("slow was cut")
async def a_wait_for_around_a_step(ctx: AsyncContext, w: World) -> Any:
    async def slow() -> None:
        await w.hang("slow", f"s{w.run}")

    w.start(f"s{w.run}")
    try:
        await asyncio.wait_for(ctx.step("slow", slow), 0.1)
    except TimeoutError:
        w.ended(f"s{w.run}")
        await ctx.step("instead", w.do, "instead")
        await ctx.sleep("nap", 60)
    return "slow was cut"


@shape("went on", quick=ALWAYS)
async def a_task_group_that_cuts_off_a_sibling(ctx: AsyncContext, w: World) -> Any:
    async def slow(line: str) -> None:
        await w.hang("slow", line)

    async def quick(line: str) -> None:
        await asyncio.sleep(0.05)
        w.do("quick", line)

    async def one(name: str, fn: Callable[[str], Any]) -> None:
        line = f"{name}{w.run}"
        w.start(line)
        try:
            await ctx.step(name, fn, line)
        finally:
            w.ended(line)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(one("slow", slow))
            group.create_task(one("quick", quick))
    except* Broken as errors:
        w.caught("quick", errors.exceptions[0])
    await ctx.step("instead", w.do, "instead")
    await ctx.sleep("nap", 60)
    await ctx.step("after", w.do, "after")
    return "went on"


@shape("quick!")
async def the_first_of_two_wins(ctx: AsyncContext, w: World) -> Any:
    async def slow(line: str) -> str:
        w.do("slow", line)
        await asyncio.sleep(30)
        return "slow"

    async def one(name: str, fn: Callable[[str], Any]) -> Any:
        line = f"{name}{w.run}"
        w.start(line)
        try:
            return await ctx.step(name, fn, line)
        finally:
            w.ended(line)

    async def quick(line: str) -> str:
        await asyncio.sleep(0.05)
        return w.do("quick", line)

    tasks = [asyncio.create_task(one("slow", slow)), asyncio.create_task(one("quick", quick))]
    done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for each in left:
        each.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await ctx.step("then", w.do, "then")
    await ctx.sleep("nap", 60)
    return done.pop().result()


@shape(lambda w: "cut off" if "slow" in w.stands else "in time")
async def a_shielded_step_that_the_code_cancels(ctx: AsyncContext, w: World) -> Any:
    async def slow() -> str:
        await asyncio.sleep(0.2)
        return w.do("slow")

    try:
        async with asyncio.timeout(0.1):
            await ctx.step(Step("slow", shield=True), slow)
    except TimeoutError:
        await ctx.step("then", w.do, "then")
        await ctx.sleep("nap", 60)
        await ctx.step("after", w.do, "after")
        return "cut off"
    return "in time"


@shape(["a!", "b!"], a=2)
async def retries_inside_a_gather(ctx: AsyncContext, w: World) -> Any:
    async def one(name: str) -> str:
        return await ctx.step(Step(name, max_attempts=3, retry=[0]), w.ado, name, name)

    return list(await asyncio.gather(one("a"), one("b")))


@shape("two steps of one branch!", a=ALWAYS)
async def a_branch_that_goes_on(ctx: AsyncContext, w: World) -> Any:
    async def branch() -> str:
        line = f"b{w.run}"
        w.start(line)
        try:
            await ctx.step("a", w.ado, "a", line)
        except Broken as error:
            w.caught("a", error)
            return await ctx.step("two steps of one branch", w.ado, "two steps of one branch", line)
        finally:
            w.ended(line)
        return "none"

    found = await asyncio.gather(branch())
    await ctx.sleep("nap", 60)
    return found[0]


@shape("paid", pay=1)
async def an_awaited_transaction(ctx: AsyncContext, w: World) -> Any:
    await ctx.step("before", w.ado, "before")
    await ctx.transact("pay", lambda conn: w.do("pay"))
    await ctx.step("after", w.ado, "after")
    return "paid"


@pytest.fixture
def living(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lives]:
    with lives(database_url, monkeypatch) as made:
        yield made


def _tasks(given: Shape) -> list[Any]:
    options: Any = {"name": "work", "queue": "q", "max_attempts": 6, "retry": [0]}
    body = given.body
    if asyncio.iscoroutinefunction(body):

        @task(**options)
        async def awaited(ctx: AsyncContext) -> Any:
            return await body(ctx, ctx.state)

        return [awaited, good, bad]

    @task(**options)
    def plain(ctx: Context) -> Any:
        return body(ctx, ctx.state)

    return [plain, good, bad]


def _check(given: Shape, living: Lives, crash_at: int | None) -> World:
    world = World(fails=dict(given.fails), crash_at=crash_at)
    outcome, world = living.live(_tasks(given), world)
    judge(world)
    expected = given.expect(world)
    match outcome:
        case Completed(result=result):
            assert msgspec.json.decode(result) == expected, world.log
        case Failed(error=error):
            assert isinstance(expected, Error), (error, world.log)
            assert expected in error.message, world.log
        case Cancelled():
            raise AssertionError(world.log)
    return world


def _at_every_boundary(given: Shape, living: Lives) -> None:
    whole = _check(given, living, None)
    for boundary in range(whole.boundaries + 1):
        _check(given, living, boundary)


@pytest.mark.parametrize("name", [*PLAIN, *ASYNC])
def test_a_shape_ends_as_the_contract_says_wherever_it_is_killed(living: Lives, name: str) -> None:
    _at_every_boundary(PLAIN.get(name) or ASYNC[name], living)


# ---------------------------------------------------------------- any code


def _program(seed: int) -> tuple[Callable[..., Any], dict[str, int]]:
    """A body of a plain task made by chance, and how often each of its effects fails."""
    chance = random.Random(seed)
    statements = [
        (chance.choice(["step", "caught", "caught", "finally", "again", "sleep", "threads",
                        "transact", "caught transact", "started"]), f"n{place}")
        for place in range(chance.randint(2, 7))
    ]  # fmt: skip
    fails = {name: chance.choice([0, 0, 1, 2, ALWAYS]) for _, name in statements}
    fails |= {f"{name}-{i}": chance.choice([0, 0, 1]) for _, name in statements for i in range(3)}

    def body(ctx: Context, w: World) -> Any:
        for kind, name in statements:
            _state(ctx, w, kind, name)
        return "ended"

    return body, fails


def _state(ctx: Context, w: World, kind: str, name: str) -> None:
    def beside(i: int) -> None:
        line = f"{name}-{i}-{w.run}"
        w.start(line)
        try:
            ctx.step(f"{name}-{i}", w.do, f"{name}-{i}", line)
        finally:
            w.ended(line)

    match kind:
        case "step":
            ctx.step(name, w.do, name)
        case "again":
            ctx.step(Step(name, max_attempts=3, retry=[0.01]), w.do, name)
        case "sleep":
            ctx.sleep(name, 60)
        case "started":
            ctx.start(name, good, {})
        case "transact":
            ctx.transact(name, lambda conn: w.do(name))
        case "finally":
            try:
                ctx.step(name, w.do, name)
            finally:
                ctx.step(f"{name} over", w.do, f"{name} over")
        case "threads":
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(beside, range(3)))
        case _:
            try:
                if kind == "caught":
                    ctx.step(name, w.do, name)
                else:
                    ctx.transact(name, lambda conn: w.do(name))
            except Broken as error:
                w.caught(name, error)


@pytest.mark.parametrize("seeds", range(8))
def test_any_code_keeps_the_promises_wherever_it_is_killed(living: Lives, seeds: int) -> None:
    for seed in range(seeds * 10, seeds * 10 + 10):
        body, fails = _program(seed)
        made = Shape(body, lambda _: None, fails)

        def lived(crash_at: int | None, made: Shape = made) -> tuple[Any, World]:
            world = World(fails=dict(made.fails), crash_at=crash_at)
            outcome, world = living.live(_tasks(made), world)
            judge(world)
            return outcome, world

        whole = lived(None)[1]
        chance = random.Random(seed)
        for boundary in chance.sample(range(whole.boundaries), min(6, whole.boundaries)):
            outcome, world = lived(boundary)
            if isinstance(outcome, Failed):
                told = outcome.error.message
                assert "stands" in told or outcome.error.type.endswith("Broken"), (seed, world.log)


@pytest.mark.parametrize(
    ("kind", "name", "planted", "seen_by"),
    [
        (Journal, "rising", lambda *_: [], "a_failure_that_stands_is_raised_again"),
        (Journal, "rising", lambda *_: [], "a_caught_failure_before_a_wait"),
        (Line, "heir", lambda line: line, "a_thread_whose_failure_is_caught"),
        (
            Journal,
            "rising",
            lambda book, line, name: [f for f in book._open if f.name != name],
            "a_gather",
        ),
        (Journal, "end_by", lambda *_: None, "a_finally_that_goes_on"),
        (StepCall, "cut", lambda *_: None, "a_step_cancelled_by_the_code"),
    ],
)
def test_a_planted_defect_is_seen(
    living: Lives, monkeypatch: pytest.MonkeyPatch, kind: type, name: str, planted: Any,
    seen_by: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(kind, name, planted)
    given = PLAIN.get(seen_by) or ASYNC[seen_by]
    with pytest.raises(AssertionError):
        _at_every_boundary(given, living)
