"""Callers' own connections, of every kind: what is enqueued is part of their transaction."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager, closing, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from conductor_cli import AsyncConductor, Conductor, Duplicate, PayloadError, task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@task(queue="lent", priority=3)
def greet(name: str) -> str:
    return name


class Lent:
    """A caller's transaction: what is lent, and how its owner commits or rolls back."""

    def __init__(self, connection: Any, commit: Callable[[], Any], rollback: Callable[[], Any]):
        self.connection, self.commit, self.rollback = connection, commit, rollback


def alchemist(url: str, driver: str) -> str:
    return url.replace("postgresql://", f"postgresql+{driver}://", 1)


@contextmanager
def psycopg2(url: str) -> Iterator[Lent]:
    driver = pytest.importorskip("psycopg2")
    extras = pytest.importorskip("psycopg2.extras")
    with closing(driver.connect(url, cursor_factory=extras.RealDictCursor)) as conn:
        yield Lent(conn, conn.commit, conn.rollback)


@contextmanager
def psycopg3(url: str) -> Iterator[Lent]:
    with psycopg.connect(url, row_factory=dict_row) as conn:
        yield Lent(conn, conn.commit, conn.rollback)


@contextmanager
def alchemy(url: str, driver: str) -> Iterator[Lent]:
    engine = pytest.importorskip("sqlalchemy").create_engine(alchemist(url, driver))
    try:
        with engine.connect() as conn:
            yield Lent(conn, conn.commit, conn.rollback)
    finally:
        engine.dispose()


@contextmanager
def alchemy_session(url: str, driver: str, *, scoped: bool = False) -> Iterator[Lent]:
    orm = pytest.importorskip("sqlalchemy.orm")
    engine = pytest.importorskip("sqlalchemy").create_engine(alchemist(url, driver))
    made = orm.scoped_session(orm.sessionmaker(engine)) if scoped else orm.Session(engine)
    try:
        yield Lent(made, made.commit, made.rollback)
    finally:
        made.close()
        engine.dispose()


@contextmanager
def django(url: str, *, proxied: bool = False) -> Iterator[Lent]:
    settings = pytest.importorskip("django.conf").settings
    if not settings.configured:
        settings.configure()
        pytest.importorskip("django").setup()
    utils = pytest.importorskip("django.db.utils")
    parts = conninfo_to_dict(url)
    handler = utils.ConnectionHandler(
        {
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": parts.get("dbname"),
                "USER": parts.get("user", ""),
                "PASSWORD": parts.get("password", ""),
                "HOST": parts.get("host", ""),
                "PORT": parts.get("port", ""),
            }
        }
    )
    conn: Any = handler["default"]
    if proxied:
        conn = pytest.importorskip("django.utils.connection").ConnectionProxy(handler, "default")
    conn.set_autocommit(False)
    try:
        yield Lent(conn, conn.commit, conn.rollback)
    finally:
        conn.rollback()
        handler["default"].close()


SYNC: dict[str, Callable[[str], Any]] = {
    "psycopg": psycopg3,
    "psycopg2": psycopg2,
    "sqlalchemy psycopg": lambda url: alchemy(url, "psycopg"),
    "sqlalchemy psycopg2": lambda url: alchemy(url, "psycopg2"),
    "session psycopg": lambda url: alchemy_session(url, "psycopg"),
    "session psycopg2": lambda url: alchemy_session(url, "psycopg2"),
    "scoped session": lambda url: alchemy_session(url, "psycopg", scoped=True),
    "django": django,
    "django proxy": lambda url: django(url, proxied=True),
}


@asynccontextmanager
async def psycopg_async(url: str) -> AsyncIterator[Lent]:
    async with await psycopg.AsyncConnection.connect(url, row_factory=dict_row) as conn:
        yield Lent(conn, conn.commit, conn.rollback)


@asynccontextmanager
async def asyncpg(url: str, *, pooled: bool = False) -> AsyncIterator[Lent]:
    driver = pytest.importorskip("asyncpg")
    parts = urlsplit(url)
    hosts = parse_qs(parts.query).get("host", [parts.hostname])
    given = {"user": parts.username, "password": parts.password, "host": hosts[0]}
    database = parts.path.removeprefix("/")
    if pooled:
        made = driver.create_pool(
            min_size=1, max_size=1, database=database, port=parts.port, **given
        )
        async with made as pool, pool.acquire() as conn:
            transaction = conn.transaction()
            await transaction.start()
            yield Lent(conn, transaction.commit, transaction.rollback)
        return
    conn = await driver.connect(database=database, port=parts.port, **given)
    transaction = conn.transaction()
    await transaction.start()
    try:
        yield Lent(conn, transaction.commit, transaction.rollback)
    finally:
        await conn.close()


@asynccontextmanager
async def alchemy_async(url: str, driver: str) -> AsyncIterator[Lent]:
    aio = pytest.importorskip("sqlalchemy.ext.asyncio")
    engine = aio.create_async_engine(alchemist(url, driver))
    try:
        async with engine.connect() as conn:
            yield Lent(conn, conn.commit, conn.rollback)
    finally:
        await engine.dispose()


@asynccontextmanager
async def alchemy_session_async(url: str, driver: str) -> AsyncIterator[Lent]:
    aio = pytest.importorskip("sqlalchemy.ext.asyncio")
    engine = aio.create_async_engine(alchemist(url, driver))
    try:
        async with aio.AsyncSession(engine) as session:
            yield Lent(session, session.commit, session.rollback)
    finally:
        await engine.dispose()


ASYNC: dict[str, Callable[[str], Any]] = {
    "psycopg": psycopg_async,
    "asyncpg": asyncpg,
    "asyncpg pool": lambda url: asyncpg(url, pooled=True),
    "sqlalchemy asyncpg": lambda url: alchemy_async(url, "asyncpg"),
    "sqlalchemy psycopg": lambda url: alchemy_async(url, "psycopg"),
    "session asyncpg": lambda url: alchemy_session_async(url, "asyncpg"),
    "session psycopg": lambda url: alchemy_session_async(url, "psycopg"),
}


def names(conductor: Conductor) -> set[str]:
    return {each.payload["name"] for each in conductor.list()}


@pytest.mark.parametrize("kind", SYNC)
def test_it_exists_if_and_only_if_the_caller_commits(
    conductor: Conductor, database_url: str, kind: str
) -> None:
    with SYNC[kind](database_url) as lent:
        conductor.invoke(greet, {"name": "never"}, connection=lent.connection)
        lent.rollback()
    with SYNC[kind](database_url) as lent:
        one = conductor.invoke(
            greet, {"name": "100% of it's :p1 $1 ü"}, delay=60, metadata={"k": 1},
            connection=lent.connection,
        )  # fmt: skip
        many = conductor.invoke_many(
            greet, [{"name": "b"}, greet.bind(name="c").options(priority=9)],
            connection=lent.connection,
        )  # fmt: skip
        assert conductor.list() == []
        lent.commit()
    found = conductor.get(one)
    assert found is not None
    assert (found.queue, found.priority, found.metadata) == ("lent", 3, {"k": 1})
    assert names(conductor) == {"100% of it's :p1 $1 ü", "b", "c"}
    assert [type(id) for id in (one, *many)] == [UUID] * 3


@pytest.mark.parametrize("kind", SYNC)
def test_who_meets_a_duplicate_hears_of_it_and_all_or_none_are_made(
    conductor: Conductor, database_url: str, kind: str
) -> None:
    there = conductor.invoke(greet, {"name": "there"}, dedupe_key="k")
    with SYNC[kind](database_url) as lent:
        lend: Any = {"connection": lent.connection}
        assert conductor.invoke(greet, {"name": "x"}, dedupe_key="k", **lend) == there
        fresh = greet.bind(name="fresh")
        again = greet.bind(name="again").options(dedupe_key="k", on_duplicate="raise")
        with pytest.raises(Duplicate) as caught:
            conductor.invoke_many(greet, [fresh, again], **lend)
        assert caught.value.id == there
        conductor.invoke(greet, {"name": "after"}, **lend)
        lent.commit()
    assert names(conductor) == {"there", "after"}


@pytest.mark.parametrize("kind", ASYNC)
def test_the_same_holds_for_asynchronous_ones(
    conductor: Conductor, database_url: str, kind: str
) -> None:
    async def use(aio: AsyncConductor) -> list[UUID]:
        async with ASYNC[kind](database_url) as lent:
            await aio.invoke(greet, {"name": "never"}, connection=lent.connection)
            await lent.rollback()
        async with ASYNC[kind](database_url) as lent:
            one = await aio.invoke(greet, {"name": "a"}, connection=lent.connection)
            twice = greet.bind(name="no").options(dedupe_key="k", on_duplicate="raise")
            with pytest.raises(Duplicate):
                await aio.invoke_many(
                    greet, [{"name": "no"}, twice, twice], connection=lent.connection
                )
            many = await aio.invoke_many(greet, [{"name": "b"}], connection=lent.connection)
            assert await aio.list() == []
            await lent.commit()
        return [one, *many]

    async def main() -> list[UUID]:
        async with AsyncConductor.create(database_url) as aio:
            return await use(aio)

    made = asyncio.run(main())
    assert names(conductor) == {"a", "b"}
    assert {each.id for each in conductor.list()} == set(made)


def test_a_synchronous_one_may_be_lent_to_the_asynchronous_client(
    conductor: Conductor, database_url: str
) -> None:
    async def main(connection: Any) -> None:
        async with AsyncConductor.create(database_url) as aio:
            await aio.invoke(greet, {"name": "a"}, connection=connection)

    with psycopg3(database_url) as lent:
        asyncio.run(main(lent.connection))
        assert conductor.list() == []
        lent.commit()
    assert names(conductor) == {"a"}


def test_an_asynchronous_one_is_refused_by_the_synchronous_client(
    conductor: Conductor, database_url: str
) -> None:
    async def main() -> None:
        for kind in ("psycopg", "asyncpg", "session asyncpg"):
            async with ASYNC[kind](database_url) as lent:
                with pytest.raises(TypeError, match="use AsyncConductor"):
                    conductor.invoke(greet, {"name": "a"}, connection=lent.connection)

    asyncio.run(main())


def test_what_is_no_connection_to_postgres_is_refused_with_what_may_be_given(
    conductor: Conductor, database_url: str
) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    memory = sqlalchemy.create_engine("sqlite://")
    with closing(sqlite3.connect(":memory:")) as lite, memory.connect() as alchemical:
        for wrong, message in (
            ("postgresql://", "str> cannot be used: it takes a psycopg Connection"),
            (lite, "sqlite3.Connection> cannot be used"),
            (conductor.database, "Database> cannot be used"),
            (memory, "Take a connection from it first"),
            (alchemical, "leads to sqlite, not to Postgres"),
        ):
            with pytest.raises(TypeError, match=message):
                conductor.invoke(greet, {"name": "a"}, connection=wrong)
            with pytest.raises(TypeError, match=message):
                asyncio.run(_invoke(database_url, wrong))
    memory.dispose()
    assert conductor.list() == []


async def _invoke(url: str, connection: Any) -> None:
    async with AsyncConductor.create(url) as aio:
        await aio.invoke(greet, {"name": "a"}, connection=connection)


def test_a_bad_payload_leaves_the_callers_transaction_alone(
    conductor: Conductor, database_url: str
) -> None:
    with psycopg2(database_url) as lent:
        with pytest.raises(PayloadError):
            conductor.invoke(greet, {"nam": "a"}, connection=lent.connection)
        conductor.invoke(greet, {"name": "a"}, id=uuid4(), connection=lent.connection)
        lent.commit()
    assert names(conductor) == {"a"}


@pytest.mark.parametrize("kind", SYNC)
def test_an_event_is_part_of_the_callers_transaction_too(
    conductor: Conductor, database_url: str, kind: str
) -> None:
    with SYNC[kind](database_url) as lent:
        conductor.emit("never", connection=lent.connection)
        lent.rollback()
        id = conductor.emit("done", {"a": 1}, connection=lent.connection)
        assert _events(conductor) == []
        lent.commit()
    assert _events(conductor) == [(id, "done", {"a": 1})]


@pytest.mark.parametrize("kind", ASYNC)
def test_so_it_is_of_an_asynchronous_one(
    conductor: Conductor, database_url: str, kind: str
) -> None:
    async def main() -> UUID:
        async with AsyncConductor.create(database_url) as aio:
            async with ASYNC[kind](database_url) as lent:
                id = await aio.emit("done", {"a": 1}, connection=lent.connection)
                assert _events(conductor) == []
                await lent.commit()
            await aio.emit("own")
            return id

    id = asyncio.run(main())
    assert [name for _, name, _ in _events(conductor)] == ["done", "own"]
    assert _events(conductor)[0] == (id, "done", {"a": 1})


def _events(conductor: Conductor) -> list[Any]:
    with conductor.database.connection() as conn:
        return conn.execute(
            "select id, name, payload from conductor.events order by seq"
        ).fetchall()
