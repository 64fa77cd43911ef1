"""What a task is given: its signal, its checkpoints, what caused it."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest

from conductor_cli.client import Conductor
from conductor_cli.context import (
    Abort,
    AsyncContext,
    AsyncSignal,
    Attempt,
    Context,
    Event,
    Signal,
    TaskTimeout,
)
from conductor_cli.errors import Cancelling, Released, Suspension
from conductor_cli.models import Claimed

ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
CONDUCTOR = cast("Conductor", object())


def attempt(**changes: Any) -> Attempt:
    values: dict[str, Any] = {
        "id": ID, "token": 1, "task": "work", "payload": "{}", "runs": 3, "failures": 1,
        "crashes": 0, "timeout": None, "metadata": None, "event": None, "rank": 0,
        "run_at": datetime.now(UTC), "seq": 1, "flags": 0,
    }  # fmt: skip
    return Attempt(Claimed(**{**values, **changes}))


def given(**changes: Any) -> Context[str]:
    return Context(attempt(**changes), CONDUCTOR, "state")


# ---------------------------------------------------------------- the signal


def test_a_signal_is_unset_at_first() -> None:
    signal = Signal()
    assert (signal.aborted, signal.reason, signal.wait(0)) == (False, None, False)
    signal.raise_if_aborted()


def test_the_first_reason_stays() -> None:
    signal = Signal()
    assert signal.set(Abort.CANCELLED, "first")
    assert not signal.set(Abort.TIMEOUT, "second")
    assert (signal.aborted, signal.reason, signal.wait()) == (True, Abort.CANCELLED, True)
    with pytest.raises(Cancelling, match="first"):
        signal.raise_if_aborted()


@pytest.mark.parametrize(
    ("why", "detail", "error", "text"),
    [
        (Abort.SHUTDOWN, None, Released, "shutdown"),
        (Abort.LOST, None, Released, "lost"),
        (Abort.CANCELLED, "no longer needed", Cancelling, "no longer needed"),
        (Abort.TIMEOUT, None, TaskTimeout, "timed out"),
        (Abort.TIMEOUT, "after 5 s", TaskTimeout, "after 5 s"),
    ],
)
def test_a_task_that_asks_leaves_as_it_was_told(
    why: Abort, detail: str | None, error: type[BaseException], text: str
) -> None:
    one = attempt()
    one.signal.set(why, detail)
    for ask in (one.signal.raise_if_aborted, Context(one, CONDUCTOR, None).checkpoint):
        with pytest.raises(error, match=f"^{text}$"):
            ask()

    async def ask_async() -> None:
        await AsyncContext(one, CONDUCTOR, None).checkpoint()

    with pytest.raises(error, match=f"^{text}$"):
        asyncio.run(ask_async())


def test_reasons_are_the_documented_words() -> None:
    assert [str(why) for why in Abort] == ["shutdown", "cancelled", "timeout", "lost"]


def test_except_exception_does_not_stop_a_task_from_being_released() -> None:
    assert issubclass(Released, Suspension)
    assert not issubclass(Suspension, Exception)


def test_only_one_of_many_threads_is_the_first_to_set_it() -> None:
    signal, together, first = Signal(), threading.Barrier(8), []

    def ask() -> None:
        together.wait()
        first.append(signal.set(Abort.SHUTDOWN))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(first) == 1


def test_waiting_ends_when_it_is_set() -> None:
    signal = Signal()
    threading.Timer(0.01, signal.set, (Abort.SHUTDOWN,)).start()
    assert signal.wait(timedelta(seconds=10))
    assert not Signal().wait(timedelta(milliseconds=1))


def test_a_listener_is_called_once_now_or_later_unless_forgotten() -> None:
    signal, heard = Signal(), []
    forgotten = lambda: heard.append("forgotten")  # noqa: E731
    signal.on_set(lambda: heard.append("early"))
    signal.on_set(forgotten)
    signal.forget(forgotten)
    signal.forget(forgotten)
    assert heard == []
    signal.set(Abort.LOST)
    signal.set(Abort.LOST)
    signal.on_set(lambda: heard.append("late"))
    assert heard == ["early", "late"]


def test_a_signal_is_made_when_first_asked_for_and_then_stays() -> None:
    one = attempt()
    assert one.abort_reason is None
    assert one._signal is None
    assert one.signal is one.signal is Context(one, CONDUCTOR, None).signal
    one.signal.set(Abort.TIMEOUT)
    assert one.abort_reason is Abort.TIMEOUT


# ---------------------------------------------------------------- its awaitable twin


def test_an_async_task_waits_without_blocking_its_loop() -> None:
    signal = Signal()
    twin = AsyncSignal(signal)

    async def work() -> list[bool]:
        assert (twin.aborted, twin.reason) == (False, None)
        waiting = asyncio.create_task(twin.wait(10))
        await asyncio.sleep(0)
        threading.Thread(target=signal.set, args=(Abort.SHUTDOWN,)).start()
        return [await waiting, await twin.wait(), await twin.wait(0)]

    assert asyncio.run(work()) == [True, True, True]
    assert (twin.aborted, twin.reason) == (True, Abort.SHUTDOWN)
    with pytest.raises(Released):
        twin.raise_if_aborted()


def test_waiting_in_vain_again_and_again_leaves_nothing_behind() -> None:
    signal = Signal()

    async def work() -> None:
        for _ in range(20):
            assert not await AsyncSignal(signal).wait(0.0001)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(AsyncSignal(signal).wait(timedelta(hours=1)), 0.0001)

    asyncio.run(work())
    assert signal._listeners == []
    assert signal.set(Abort.SHUTDOWN), "the loop is closed: nobody may be called there"


def test_an_async_checkpoint_gives_others_their_turn() -> None:
    order = []

    async def other() -> None:
        order.append("other")

    async def work() -> None:
        task = asyncio.create_task(other())
        await AsyncContext(attempt(), CONDUCTOR, None).checkpoint()
        order.append("work")
        await task

    asyncio.run(work())
    assert order == ["other", "work"]


# ---------------------------------------------------------------- attempts and contexts


def test_one_decides_how_an_attempt_ended() -> None:
    one, together, deciders = attempt(), threading.Barrier(8), []

    def ask() -> None:
        together.wait()
        deciders.append(one.decide())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(deciders) == 1
    assert not one.decide()


def test_a_checkpoint_passes_while_nobody_asks() -> None:
    given().checkpoint()


def test_a_context_tells_who_it_is() -> None:
    ctx = given()
    assert (ctx.execution_id, ctx.attempt, ctx.runs, ctx.conductor, ctx.state) == (
        ID,
        2,
        3,
        CONDUCTOR,
        "state",
    )


def test_metadata_is_never_none() -> None:
    assert given().metadata == {}
    assert given(metadata='{"tenant":"acme"}').metadata == {"tenant": "acme"}


def test_an_event_tells_what_caused_the_execution() -> None:
    assert given().event is None
    event = '{"name":"daily","payload":{"kind":"x"},"scheduled_for":"2026-01-01T06:00:00Z"}'
    moment = datetime(2026, 1, 1, 6, tzinfo=UTC)
    assert given(event=event).event == Event("daily", {"kind": "x"}, moment)


def test_the_logger_is_bound_to_the_execution(caplog: pytest.LogCaptureFixture) -> None:
    ctx = given()
    assert ctx.logger is ctx.logger
    assert ctx.logger._context == {"task": "work", "execution": str(ID), "attempt": 2, "run": 3}
