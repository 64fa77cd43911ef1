"""The awaitable client: the same logic, and no thread for who waits."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import Any
from uuid import uuid4

import pytest

from conductor_cli import (
    AsyncConductor,
    AsyncContext,
    Conductor,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionNotFound,
    PayloadError,
    State,
    task,
)

# What the package's own rooms call.
NOT_MIRRORED = {"row", "rows", "event_payload", "child", "children"}


@task
def greet(name: str) -> str:
    return f"Hello, {name}!"


@task(max_attempts=1)
def broken() -> None:
    raise ValueError("broken")


def public(kind: type) -> dict[str, Any]:
    return {
        name: value for name, value in inspect.getmembers(kind, inspect.isroutine)
        if not name.startswith("_")
    }  # fmt: skip


def test_it_has_the_same_methods_with_the_same_parameters() -> None:
    ours, theirs = public(AsyncConductor), public(Conductor)
    assert set(ours) == set(theirs) - NOT_MIRRORED
    for name, method in ours.items():
        mine = inspect.signature(method).parameters.values()
        other = inspect.signature(theirs[name]).parameters.values()
        assert [(p.name, p.kind, p.default) for p in mine] == [
            (p.name, p.kind, p.default) for p in other
        ], name


def test_it_invokes_looks_waits_and_cancels(
    database_url: str, conductor: Conductor, start: Any
) -> None:
    async def main() -> None:
        async with AsyncConductor.create(database_url) as aio:
            await aio.ensure_installed()
            id = await aio.invoke(greet, {"name": "Ada"})
            assert await aio.wait(id, greet, timeout=10) == "Hello, Ada!"
            ids = await aio.invoke_many(greet, ({"name": str(n)} for n in range(20)))
            results = await asyncio.gather(*[aio.wait(each, timeout=10) for each in ids])
            assert results == [f"Hello, {n}!" for n in range(20)]
            with pytest.raises(ExecutionFailed, match="broken"):
                await aio.wait(await aio.invoke(broken), timeout=10)
            with pytest.raises(PayloadError):
                await aio.invoke(greet, {"nam": "x"})
            later = await aio.invoke(greet, {"name": "x"}, delay=3600)
            assert [each.id for each in await aio.list(state="pending")] == [later]
            assert await aio.cancel(later, "no")
            with pytest.raises(ExecutionCancelled, match="no"):
                await aio.wait(later)
            assert await aio.retry(later)
            found = await aio.get(later)
            assert found is not None
            with pytest.raises(ExecutionNotFound):
                await aio.wait(uuid4())
            with pytest.raises(TimeoutError, match=r"after 0\.05 s"):
                await aio.wait(await aio.invoke(greet, {"name": "x"}, delay=60), timeout=0.05)

    start(greet, broken)
    asyncio.run(main())


def test_it_pauses_and_schedules(database_url: str) -> None:
    async def main() -> list[bool]:
        async with AsyncConductor.create(database_url) as aio:
            return [
                await aio.pause("default"), await aio.pause("default"), await aio.resume("default"),
                await aio.schedule(greet, "s", "@daily", {"name": "x"}),
                await aio.unschedule(greet, "s"), await aio.unschedule(greet, "s"),
            ]  # fmt: skip

    assert asyncio.run(main()) == [True, False, True, True, True, False]


def test_a_hundred_who_wait_hold_no_thread(database_url: str, start: Any, eventually: Any) -> None:
    gate = threading.Event()

    @task
    def gated() -> int:
        assert gate.wait(60)
        return 1

    async def main() -> list[int]:
        async with AsyncConductor.create(database_url) as aio:
            id = await aio.invoke(gated)
            before = threading.active_count()
            waits = [asyncio.create_task(aio.wait(id, gated, timeout=60)) for _ in range(100)]
            while len(_waiting(aio, id)) < 100:
                await asyncio.sleep(0.01)
            assert threading.active_count() <= before + 8 + 1
            gate.set()
            return await asyncio.gather(*waits)

    start(gated)
    try:
        assert asyncio.run(main()) == [1] * 100
    finally:
        gate.set()


def _waiting(aio: AsyncConductor, id: Any) -> list[Any]:
    lookout = aio.sync.ends._lookout
    awaited = None if lookout is None else lookout._awaited.get(id)
    return [] if awaited is None else awaited.futures


def test_a_wait_that_is_cancelled_leaves_nothing_behind(database_url: str) -> None:
    async def main() -> None:
        async with AsyncConductor.create(database_url) as aio:
            id = await aio.invoke(greet, {"name": "x"}, delay=60)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(aio.wait(id), 0.1)
            while _waiting(aio, id):
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_watch_shows_the_changes(database_url: str, make: Any) -> None:
    orchestrator = make(greet)

    async def main() -> list[State]:
        async with AsyncConductor.create(database_url) as aio:
            states = []
            async for each in aio.watch(await aio.invoke(greet, {"name": "x"})):
                if not states:
                    await asyncio.to_thread(orchestrator.start, signals=False)
                states.append(each.state)
            return states

    states = asyncio.run(main())
    assert (states[0], states[-1]) == (State.PENDING, State.COMPLETED)


def test_it_serves_one_event_loop_after_the_other(database_url: str, start: Any) -> None:
    aio = AsyncConductor.create(database_url)

    async def once() -> str:
        return await aio.wait(await aio.invoke(greet, {"name": "x"}), greet, timeout=10)

    start(greet)
    assert [asyncio.run(once()) for _ in range(3)] == ["Hello, x!"] * 3
    asyncio.run(aio.close())


def test_an_async_task_has_the_awaitable_client(conductor: Conductor, start: Any) -> None:
    @task
    async def parent(ctx: AsyncContext, wait: bool) -> str:
        id = await ctx.conductor.invoke(greet, {"name": "child"})
        if wait:
            await ctx.conductor.wait(id)
        return str(id)

    start(parent, greet)
    from uuid import UUID

    child = conductor.wait(conductor.invoke(parent, {"wait": False}), parent, timeout=10)
    assert conductor.wait(UUID(child), greet, timeout=10) == "Hello, child!"
    id = conductor.invoke(parent.bind(wait=True).options(timeout=30))
    found = conductor.get(id)
    assert found is not None
    for each in conductor.watch(id):
        if each.error is not None:
            assert "inside a task" in each.error.message
            break
    else:
        pytest.fail("waiting inside a task was not refused")
