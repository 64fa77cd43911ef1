"""Results of steps that cannot be stored, and those that only a model can read: one effect each."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pydantic
import pytest

from conductor_cli import AsyncContext, Conductor, Context, ExecutionFailed, Step, task

if TYPE_CHECKING:
    from collections.abc import Callable


class Alias(pydantic.BaseModel):
    id: int = pydantic.Field(alias="_id")


class Secret(pydantic.BaseModel):
    token: pydantic.SecretStr


class Response:
    status = 200


def cents() -> int:
    return 12.5  # type: ignore[return-value]


UNSTORABLE: dict[str, Callable[[], Any]] = {
    "no JSON": Response,
    "a misfit": cents,
    "too large": lambda: "x" * 2_000_000,
    "another type when it is read": uuid.uuid4,
    "NaN": lambda: float("nan"),
}


def swallowing(ctx: Context, produce: Callable[[], Any]) -> str:
    try:
        ctx.step("charge", produce)
    except Exception:
        return "went on"
    return "done"


@pytest.mark.parametrize("produce", UNSTORABLE.values(), ids=UNSTORABLE)
@pytest.mark.parametrize("swallows", [False, True])
def test_a_result_that_cannot_be_stored_ends_the_execution_after_one_effect(
    conductor: Conductor, start: Any, produce: Callable[[], Any], swallows: bool
) -> None:
    charged: list[int] = []

    def effect() -> Any:
        charged.append(1)
        return produce()

    if produce is cents:
        effect.__annotations__["return"] = int
    elif produce is not Response:
        del effect.__annotations__["return"]

    @task(max_attempts=3, retry=[0.01])
    def plain(ctx: Context) -> str:
        if swallows:
            return swallowing(ctx, effect)
        ctx.step("charge", effect)
        return "done"

    @task(max_attempts=3, retry=[0.01])
    async def awaited(ctx: AsyncContext) -> str:
        try:
            await ctx.step("charge", effect)
        except Exception:
            if not swallows:
                raise
        return "went on"

    start(plain, awaited)
    for each in (plain, awaited):
        charged.clear()
        with pytest.raises(ExecutionFailed, match="PayloadError: The result of step 'charge'"):
            conductor.wait(conductor.invoke(each), timeout=10)
        assert charged == [1]


def test_a_writing_step_whose_result_cannot_be_stored_writes_nothing(
    conductor: Conductor, start: Any
) -> None:
    with conductor.database.connection() as conn:
        conn.execute("create table charges (n int)")

    def charge(conn: Any) -> Any:
        conn.execute("insert into charges values (1)")
        return object()

    @task(max_attempts=3, retry=[0.01])
    def pays(ctx: Context) -> None:
        ctx.transact("charge", charge)

    start(pays)
    with pytest.raises(ExecutionFailed, match="PayloadError"):
        conductor.wait(conductor.invoke(pays), timeout=10)
    with conductor.database.connection() as conn:
        assert conn.execute("select count(*) from charges").fetchall() == [(0,)]


def test_what_cannot_be_stored_by_its_type_is_refused_before_the_effect(
    conductor: Conductor, start: Any
) -> None:
    charged: list[int] = []

    def charge() -> Secret:
        charged.append(1)
        return Secret(token="x")  # type: ignore[arg-type]

    @task(max_attempts=1)
    def pays(ctx: Context) -> None:
        ctx.step("charge", charge)

    start(pays)
    with pytest.raises(ExecutionFailed, match="field 'token' of Secret is a secret"):
        conductor.wait(conductor.invoke(pays), timeout=10)
    assert charged == []


def test_a_model_is_the_same_on_the_first_run_and_on_each_replay(
    conductor: Conductor, start: Any
) -> None:
    seen: list[object] = []

    def find() -> Alias:
        return Alias(_id=7)

    def find_untyped():  # type: ignore[no-untyped-def]
        return [Alias(_id=8)]

    @task(max_attempts=3, retry=[0])
    def works(ctx: Context, order: Alias) -> Alias:
        found = ctx.step("typed", find)
        listed = ctx.step(Step("untyped", returns=list[Alias]), find_untyped)
        adapted = ctx.step(Step("adapted", returns=pydantic.TypeAdapter(list[Alias])), find_untyped)
        made = ctx.step("made", Alias, _id=9)
        id = ctx.step(Step("id", returns=uuid.UUID), uuid.uuid4)
        seen.append((order, found, listed, adapted, made, id))
        if ctx.attempt < 3:
            raise ValueError("again")
        return found

    start(works)
    result = conductor.wait(conductor.invoke(works, {"order": Alias(_id=1)}), works, timeout=10)

    assert result == Alias(_id=7)
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]
    assert isinstance(seen[0], tuple)
    assert isinstance(seen[0][-1], uuid.UUID)


class ApiError(Exception):
    def __init__(self, code: int, body: str) -> None:
        self.code = code
        super().__init__(code, body)


def test_a_caught_failure_has_its_attributes_on_each_replay(
    conductor: Conductor, start: Any
) -> None:
    seen: list[tuple[int, str]] = []

    def call() -> None:
        raise ApiError(503, "busy")

    @task(max_attempts=2, retry=[0])
    def works(ctx: Context) -> None:
        try:
            ctx.step("call", call)
        except ApiError as error:
            seen.append((error.code, str(error)))
        ctx.step("note", lambda: None)
        ctx.sleep("pause", 0.01)

    start(works)
    conductor.wait(conductor.invoke(works), timeout=10)

    assert seen == [(503, "(503, 'busy')")] * 2
