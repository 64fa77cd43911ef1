"""Whatever a task's code raises, and wherever: its run ends, and its slot takes the next one."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from conductor_cli import (
    AsyncConductor,
    AsyncContext,
    Conductor,
    Context,
    State,
    Step,
    WorkerConfig,
    task,
)


class Own(BaseException):
    """A task's own way out."""


KINDS: dict[str, type[BaseException]] = {
    kind.__name__: kind
    for kind in (
        StopIteration, StopAsyncIteration, GeneratorExit, KeyboardInterrupt, SystemExit, Own,
        asyncio.CancelledError,
    )
}  # fmt: skip
ONE = WorkerConfig(concurrency=1)


def fail(kind: str) -> None:
    raise KINDS[kind]("told")


async def fail_awaited(kind: str) -> None:
    raise KINDS[kind]("told")


@task(name="plain", max_attempts=1)
def plain(ctx: Context, kind: str) -> None:
    fail(kind)


@task(name="plain_step", max_attempts=1)
def plain_step(ctx: Context, kind: str) -> None:
    ctx.step("fails", fail, kind)


@task(name="plain_transact", max_attempts=1)
def plain_transact(ctx: Context, kind: str) -> None:
    ctx.transact("fails", lambda _conn: fail(kind))


@task(name="awaited", max_attempts=1)
async def awaited(kind: str) -> None:
    fail(kind)


@task(name="awaited_plain_step", max_attempts=1)
async def awaited_plain_step(ctx: AsyncContext, kind: str) -> None:
    await ctx.step("fails", fail, kind)


@task(name="awaited_limited_step", max_attempts=1)
async def awaited_limited_step(ctx: AsyncContext, kind: str) -> None:
    await ctx.step(Step("fails", timeout=10), fail, kind)


@task(name="awaited_step", max_attempts=1)
async def awaited_step(ctx: AsyncContext, kind: str) -> None:
    await ctx.step("fails", fail_awaited, kind)


@task(name="awaited_transact", max_attempts=1)
async def awaited_transact(ctx: AsyncContext, kind: str) -> None:
    await ctx.transact("fails", lambda _conn: fail(kind))


@task(name="awaited_gather", max_attempts=1)
async def awaited_gather(ctx: AsyncContext, kind: str) -> None:
    await asyncio.gather(ctx.step("a", fail, kind), ctx.step("b", fail_awaited, kind))


@task(name="awaited_thread", max_attempts=1)
async def awaited_task(ctx: AsyncContext, kind: str) -> None:
    await asyncio.create_task(fail_awaited(kind))


TASKS = [
    plain, plain_step, plain_transact, awaited, awaited_plain_step, awaited_limited_step,
    awaited_step, awaited_transact, awaited_gather, awaited_task,
]  # fmt: skip


@task(name="next_one")
def next_one(n: int) -> int:
    return n


@pytest.mark.parametrize("kind", KINDS)
def test_a_slot_is_free_again_after_it(
    conductor: Conductor, start: Any, eventually: Any, kind: str
) -> None:
    start(*TASKS, next_one, default_worker=ONE)
    ids = {each.name: conductor.invoke(each, {"kind": kind}) for each in TASKS}
    assert conductor.wait(conductor.invoke(next_one, {"n": 1}), next_one, timeout=30) == 1
    ended = {name: conductor.get(id) for name, id in ids.items()}
    assert {name: each and each.state for name, each in ended.items()} == dict.fromkeys(
        ids, State.FAILED
    )
    for name, each in ended.items():
        assert each is not None
        assert each.error is not None
        told = f"{each.error.type}: {each.error.message} {each.error.traceback}"
        assert kind in told, (name, each.error)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, Own, StopIteration])
def test_a_retry_policy_that_raises_ends_the_execution_and_nothing_else(
    conductor: Conductor, start: Any, raised: type[BaseException]
) -> None:
    def policy(_failures: int, _error: BaseException) -> float:
        raise raised("no more")

    @task(retry=policy)
    def unwilling() -> None:
        raise ValueError

    orchestrator = start(unwilling, next_one, default_worker=ONE)
    id = conductor.invoke(unwilling)
    assert conductor.wait(conductor.invoke(next_one, {"n": 1}), next_one, timeout=30) == 1
    ended = conductor.get(id)
    assert ended is not None
    assert ended.error is not None
    assert ended.state is State.FAILED
    assert ended.error.message.endswith(f"raised {raised.__name__}")
    assert orchestrator.info.is_running


def test_an_error_that_cannot_be_described_ends_its_execution_and_nothing_else(
    conductor: Conductor, start: Any
) -> None:
    class Meta(type):
        def __getattribute__(cls, name: str) -> Any:
            if name == "__qualname__":
                raise Own("no name")
            return super().__getattribute__(name)

    class Nameless(Exception, metaclass=Meta):
        pass

    class Group(ExceptionGroup[Exception]):
        def derive(self, excs: Any) -> Any:
            raise Own("no group")

    @task(max_attempts=1)
    def nameless() -> None:
        raise Nameless

    @task(max_attempts=1)
    def group() -> None:
        raise Group("some", [ValueError(), KeyError()])

    orchestrator = start(nameless, group, next_one, default_worker=ONE)
    ids = [conductor.invoke(nameless), conductor.invoke(group)]
    assert conductor.wait(conductor.invoke(next_one, {"n": 1}), next_one, timeout=30) == 1
    for id in ids:
        ended = conductor.get(id)
        assert ended is not None
        assert ended.state is State.FAILED
    assert orchestrator.info.is_running


def test_as_many_plain_steps_run_at_once_as_tasks_ask(conductor: Conductor, start: Any) -> None:
    """Although another task has asked for more than its share."""
    together, go_on = threading.Barrier(20), threading.Event()

    @task
    async def greedy(ctx: AsyncContext) -> int:
        got = await asyncio.gather(
            *[ctx.step(f"waits-{n}", lambda: go_on.wait(30)) for n in range(100)]
        )
        return len(got)

    @task
    async def modest(ctx: AsyncContext) -> int:
        return await ctx.step("meets", together.wait, 30)

    start(greedy, modest, default_worker=WorkerConfig(concurrency=21))
    first = conductor.invoke(greedy)
    ids = [conductor.invoke(modest) for _ in range(20)]
    try:
        assert sorted(conductor.wait(id, timeout=30) for id in ids) == list(range(20))
    finally:
        go_on.set()
    assert conductor.wait(first, timeout=30) == 100


def test_an_option_whose_code_raises_stop_iteration_is_told_to_an_awaiting_caller(
    database_url: str,
) -> None:
    class Stops(str):
        def __eq__(self, other: object) -> bool:
            raise StopIteration

        def __hash__(self) -> int:
            raise StopIteration

        def __str__(self) -> str:
            raise StopIteration

        def __format__(self, _spec: str) -> str:
            raise StopIteration

    async def main() -> None:
        async with AsyncConductor.create(database_url) as client:
            await asyncio.wait_for(client.invoke("x", {"n": 1}, queue=Stops("q")), 10)

    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(main())
