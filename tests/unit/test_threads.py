"""Threads beside an event loop: any number of them, and whatever is raised comes back."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

import pytest

from conductor_cli import threads


class Own(BaseException):
    pass


ERRORS = [
    ValueError("x"), StopAsyncIteration("x"), KeyboardInterrupt("x"), SystemExit(3), Own("x"),
    GeneratorExit("x"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_what_a_call_raises_comes_back(error: BaseException) -> None:
    def fail() -> None:
        raise error

    async def main() -> BaseException | None:
        try:
            await threads.run(fail)
        except BaseException as caught:
            return caught
        return None

    assert asyncio.run(asyncio.wait_for(main(), 10)) is error


def test_a_stop_iteration_comes_back_as_python_has_it_in_coroutines() -> None:
    async def main() -> None:
        await asyncio.wait_for(threads.run(lambda: next(iter([]))), 10)

    with pytest.raises(RuntimeError, match="coroutine raised StopIteration") as caught:
        asyncio.run(main())
    assert isinstance(caught.value.__cause__, StopIteration)


def test_as_many_run_at_once_as_are_asked_for() -> None:
    together = threading.Barrier(40)

    async def main() -> list[int]:
        return await asyncio.gather(*[threads.run(lambda: together.wait(20)) for _ in range(40)])

    assert sorted(asyncio.run(main())) == list(range(40))


def test_a_thread_is_used_again_with_a_context_of_its_own() -> None:
    seen: ContextVar[int] = ContextVar("seen", default=0)

    def look() -> tuple[int, int]:
        before = seen.get()
        seen.set(before + 1)
        return threading.get_ident(), before

    async def main() -> list[tuple[int, int]]:
        found = []
        for _ in range(20):
            found.append(await threads.run(look))
            await asyncio.sleep(0.005)  # for the thread to be idle again
        return found

    found = asyncio.run(main())
    assert {before for _, before in found} == {0}
    assert len({ident for ident, _ in found}) < 10


def test_a_thread_that_is_about_to_end_loses_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its box is taken while it looks at it for the last time."""
    monkeypatch.setattr(threads, "IDLE_FOR", 0.002)

    async def main() -> int:
        total = 0
        for n in range(400):
            total += await threads.run(lambda: 1)
            await asyncio.sleep(0.002 + (n % 7) * 0.0002)
        return total

    assert asyncio.run(asyncio.wait_for(main(), 60)) == 400


def test_a_caller_that_is_cancelled_waits_no_longer() -> None:
    go_on, ended = threading.Event(), threading.Event()

    def block() -> None:
        go_on.wait(20)
        ended.set()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(threads.run(block), 0.05)
        assert not ended.is_set()
        go_on.set()
        assert await threads.run(lambda: ended.wait(10))

    asyncio.run(main())


def test_an_outcome_is_a_value() -> None:
    error: Any = StopIteration(1)

    def fail() -> None:
        raise error

    assert threads.outcome(fail) == (error, None)
    assert threads.outcome(lambda: 7) == (None, 7)
