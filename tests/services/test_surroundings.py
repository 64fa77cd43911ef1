"""What stands around each run: context variables of its own, and middleware."""

from __future__ import annotations

import asyncio
import decimal
import sys
import types
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from conductor_cli import (
    AsyncContext,
    Conductor,
    Config,
    ConfigError,
    Context,
    ExecutionFailed,
    State,
    TaskDefinitionError,
    WorkerConfig,
    task,
)
from conductor_cli.sections import Tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

ONE = WorkerConfig(concurrency=1)
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
SAID: list[str] = []


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    SAID.clear()
    with decimal.localcontext():
        yield


@pytest.fixture
def configured(quick: Config, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """Makes a configuration whose setup and middleware are these functions."""

    def make(
        setup: Callable[[], Any] | None = None, middleware: tuple[Callable[..., Any], ...] = ()
    ) -> Config:
        module = types.ModuleType("surrounding")
        monkeypatch.setitem(sys.modules, "surrounding", module)
        for n, each in enumerate((setup, *middleware)):
            setattr(module, f"f{n}", each)
        names = tuple(f"surrounding:f{n}" for n in range(1, len(middleware) + 1))
        return replace(
            quick, tasks=Tasks(setup="surrounding:f0" if setup else None, middleware=names)
        )

    return make


@contextmanager
def outer(ctx: Any) -> Iterator[None]:
    SAID.append(f"outer {ctx.execution_id.version}")
    yield
    SAID.append("outer ends")


@contextmanager
def inner(ctx: Any) -> Iterator[None]:
    SAID.append(f"inner {type(ctx).__name__}")
    try:
        yield
    finally:
        SAID.append("inner ends")


@asynccontextmanager
async def awaited(_ctx: Any) -> AsyncIterator[None]:
    await asyncio.sleep(0)
    SAID.append("awaited")
    yield
    await asyncio.sleep(0)
    SAID.append("awaited ends")


@contextmanager
def swallow(_ctx: Any) -> Iterator[None]:
    with suppress(BaseException):
        yield
    SAID.append("swallowed")


# ── Context variables ────────────────────────────────────────────────────────────────────


def test_what_a_task_puts_into_context_variables_is_not_seen_by_the_next_one(
    conductor: Conductor, start: Any
) -> None:
    @task
    def plain(name: str) -> str:
        before = tenant.get()
        tenant.set(name)
        decimal.getcontext().prec = 3
        return f"{before} {decimal.Decimal(2).sqrt()}"

    @task
    async def coroutine(name: str) -> str:
        before = tenant.get()
        tenant.set(name)
        decimal.getcontext().prec = 3
        return f"{before} {decimal.Decimal(2).sqrt()}"

    start(plain, coroutine, default_worker=ONE)
    for each in (plain, plain, coroutine, coroutine, plain):
        got = conductor.wait(conductor.invoke(each, {"name": "acme"}), timeout=20)
        assert got == "nobody 1.41"


def test_each_run_sees_what_the_setup_has_put_there(
    conductor: Conductor, make: Any, configured: Any
) -> None:
    """And the setup takes it back when the server stops, in whatever thread."""

    @contextmanager
    def setup() -> Iterator[str]:
        token = tenant.set("app")
        decimal.getcontext().prec = 4
        yield "state"
        tenant.reset(token)
        SAID.append(f"left as {tenant.get()}")

    @task
    def plain(ctx: Context) -> str:
        before = f"{tenant.get()} {ctx.state} {decimal.Decimal(2).sqrt()}"
        tenant.set("acme")
        decimal.getcontext().prec = 9
        return before

    @task
    async def coroutine(ctx: AsyncContext) -> str:
        before = f"{tenant.get()} {ctx.state} {decimal.Decimal(2).sqrt()}"
        tenant.set("acme")
        decimal.getcontext().prec = 9
        return before

    server = make(plain, coroutine, config=configured(setup), default_worker=ONE)
    server.start(signals=False)
    for each in (plain, coroutine, plain, coroutine):
        got = conductor.wait(conductor.invoke(each), timeout=20)
        assert got == "app state 1.414"
    server.stop()
    assert SAID == ["left as nobody"]
    assert tenant.get() == "nobody"


# ── Middleware ───────────────────────────────────────────────────────────────────────────


def test_the_tasks_own_stands_inside_the_global_one(
    conductor: Conductor, start: Any, configured: Any
) -> None:
    @task(middleware=[inner])
    def plain(n: int) -> int:
        SAID.append("runs")
        return n

    @task(middleware=(inner, awaited))
    async def coroutine(ctx: AsyncContext, n: int) -> int:
        SAID.append("runs")
        return n

    start(plain, coroutine, config=configured(middleware=(outer,)), default_worker=ONE)
    assert conductor.wait(conductor.invoke(plain, {"n": 1}), plain, timeout=20) == 1
    assert SAID == ["outer 7", "inner Context", "runs", "inner ends", "outer ends"]
    SAID.clear()
    assert conductor.wait(conductor.invoke(coroutine, {"n": 2}), coroutine, timeout=20) == 2
    assert SAID == [
        "outer 7", "inner AsyncContext", "awaited", "runs", "awaited ends", "inner ends",
        "outer ends",
    ]  # fmt: skip


@pytest.mark.parametrize("timeout", [None, 30.0])
@pytest.mark.parametrize("error", [ValueError, SystemExit, StopIteration, GeneratorExit])
def test_an_error_that_it_suppresses_is_raised_after_it(
    conductor: Conductor, start: Any, error: type[BaseException], timeout: float | None
) -> None:
    @task(middleware=[inner, swallow], max_attempts=1, timeout=timeout)
    def plain() -> None:
        raise error("no")

    @task(middleware=[inner, swallow], max_attempts=1)
    async def coroutine() -> None:
        raise error("no")

    start(plain, coroutine, default_worker=ONE)
    for each in (plain, coroutine):
        SAID.clear()
        with pytest.raises(ExecutionFailed) as caught:
            conductor.wait(conductor.invoke(each), timeout=20)
        assert error.__name__ in f"{caught.value.error.type} {caught.value.error.message}"
        assert SAID[1:] == ["swallowed", "inner ends"]


def test_a_suspension_passes_and_each_run_is_surrounded(
    conductor: Conductor, start: Any, configured: Any
) -> None:
    @task(middleware=[inner])
    def plain(ctx: Context) -> int:
        ctx.sleep("nap", 0.05)
        return ctx.runs

    @task(middleware=[inner])
    async def coroutine(ctx: AsyncContext) -> int:
        await ctx.sleep("nap", 0.05)
        return ctx.runs

    start(plain, coroutine, config=configured(middleware=(swallow,)), default_worker=ONE)
    for each in (plain, coroutine):
        SAID.clear()
        assert conductor.wait(conductor.invoke(each), timeout=20) == 2
        assert [said for said in SAID if said != f"inner {_kind(each)}"] == [
            "inner ends", "swallowed",
        ] * 2  # fmt: skip


def _kind(each: Any) -> str:
    return "AsyncContext" if each.is_async else "Context"


@pytest.mark.parametrize("where", ["before", "after", "made", "none", "twice"])
def test_its_own_errors_are_the_tasks_failures(
    conductor: Conductor, start: Any, where: str
) -> None:
    @contextmanager
    def fails(_ctx: Any) -> Iterator[None]:
        if where == "before":
            raise ValueError("before")
        if where == "none":
            return
        yield
        if where == "after":
            raise ValueError("after")
        if where == "twice":
            yield

    def made(ctx: Any) -> Any:
        return 7 if where == "made" else fails(ctx)

    @task(middleware=[made], max_attempts=2, retry=[0.01])
    def plain() -> None:
        SAID.append("runs")

    @task(middleware=[made], max_attempts=2, retry=[0.01])
    async def coroutine() -> None:
        SAID.append("runs")

    server = start(plain, coroutine, default_worker=ONE)
    expected = {
        "before": "before", "after": "after", "made": "which is no context manager",
        "none": "didn't yield", "twice": "didn't stop",
    }  # fmt: skip
    for each in (plain, coroutine):
        SAID.clear()
        id = conductor.invoke(each)
        with pytest.raises(ExecutionFailed) as caught:
            conductor.wait(id, timeout=20)
        assert expected[where] in caught.value.error.message
        found = conductor.get(id)
        assert found is not None
        assert (found.state, found.failures) == (State.FAILED, 2)
        assert (["runs"] * 2 if where in ("after", "twice") else []) == SAID
    assert server.info.is_running


def test_the_global_list_refuses_what_is_for_async_tasks_only(make: Any, configured: Any) -> None:
    @task
    def plain() -> None:
        return

    server = make(plain, config=configured(middleware=(outer, awaited)))
    with pytest.raises(ConfigError, match=r"'surrounding:f2', which is for async tasks only"):
        server.start(signals=False)


def _undecorated(_ctx: Any) -> Iterator[None]:
    yield


class _Awaited:
    def __init__(self, ctx: Any) -> None: ...
    async def __aenter__(self) -> None: ...
    async def __aexit__(self, *exc_info: object) -> None: ...


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([awaited], "is for async tasks only"),
        ([_Awaited], "is for async tasks only"),
        ([_undecorated], "decorate it with @contextmanager"),
        ([7], "holds 7, which is no function"),
        (outer, "is not a list of functions"),
        ("outer", "is not a list of functions"),
    ],
)
def test_a_definition_refuses_what_is_no_layer(given: Any, told: str) -> None:
    with pytest.raises(TaskDefinitionError, match=told):

        @task(middleware=given)
        def plain() -> None:
            return


def test_what_cannot_be_loaded_is_told_at_the_start(make: Any, quick: Config) -> None:
    @task
    def plain() -> None:
        return

    config = replace(quick, tasks=Tasks(middleware=("nowhere_at_all:tenant",)))
    with pytest.raises(ConfigError, match=r"middleware = 'nowhere_at_all:tenant' cannot be loaded"):
        make(plain, config=config).start(signals=False)


# ── Django ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("closes", [True, False])
def test_a_connection_of_djangos_that_was_ended_fails_later_tasks_unless_it_is_closed(
    conductor: Conductor, start: Any, configured: Any, database_url: str, closes: bool
) -> None:
    """Of three tasks of one thread the first opens it, and then its session is ended."""
    django = _django(database_url)

    @contextmanager
    def django_connections(_ctx: Any) -> Iterator[None]:
        django.close_old_connections()
        try:
            yield
        finally:
            django.close_old_connections()

    @task(max_attempts=1)
    def session() -> int:
        with django.connections["default"].cursor() as cursor:
            cursor.execute("select pg_backend_pid()")
            (pid,) = cursor.fetchone()
        return int(pid)

    @task
    def forget() -> None:
        django.connections["default"].close()

    middleware = (django_connections,) if closes else ()
    start(session, forget, config=configured(middleware=middleware), default_worker=ONE)
    pid = conductor.wait(conductor.invoke(session), timeout=20)
    with conductor.database.connection() as conn:
        conn.execute("select pg_terminate_backend(%s, 5000)", [pid])
    first = conductor.invoke(session)
    with suppress(ExecutionFailed):
        conductor.wait(first, timeout=20)
    second = conductor.invoke(session)
    if closes:
        assert conductor.wait(second, timeout=20) != pid
    else:
        with pytest.raises(ExecutionFailed, match="connection"):
            conductor.wait(second, timeout=20)
    conductor.wait(conductor.invoke(forget), timeout=20)


def _django(url: str) -> Any:
    settings = pytest.importorskip("django.conf").settings
    if not settings.configured:
        settings.configure(USE_TZ=True)
        pytest.importorskip("django").setup()
    from psycopg.conninfo import conninfo_to_dict

    parts = conninfo_to_dict(url)
    db = pytest.importorskip("django.db")
    handler = db.utils.ConnectionHandler(
        {
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": parts["dbname"], "USER": parts.get("user", ""),
                "PASSWORD": parts.get("password", ""), "HOST": parts.get("host", ""),
                "PORT": str(parts.get("port", "")), "CONN_MAX_AGE": 600,
            }
        }
    )  # fmt: skip

    def close_old_connections() -> None:
        """As ``django.db.close_old_connections``, for this test's connections."""
        for each in handler.all(initialized_only=True):
            each.close_if_unusable_or_obsolete()

    return types.SimpleNamespace(connections=handler, close_old_connections=close_old_connections)
