"""Connections whose calls end, and the pool of them, before a database that falls silent."""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from conductor_cli import connections, database
from conductor_cli.connections import Robbed, Silent
from conductor_cli.database import Database, Statement, is_transient
from conductor_cli.errors import DatabaseUnavailable
from tests.support.proxy import Proxy, between

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conductor_cli.database import Connection


KEEP: Statement[None] = Statement(row=None, sql="insert into kept values (%(text)s)")


@pytest.fixture(autouse=True)
def _table(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("create table kept (text text check (text <> 'bad'))")


def kept(database: Database) -> list[str]:
    with database.connection() as conn:
        return [text for (text,) in conn.execute("select text from kept order by text")]


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    with between(database_url) as made:
        yield made


@pytest.fixture
def through(proxy: Proxy) -> Iterator[Database]:
    """The database as seen through the proxy."""
    opened = Database(proxy.url, size=3)
    yield opened
    opened.close()


def _plain(conn: Connection, stall: Callable[[], None]) -> None:
    stall()
    conn.execute("select 1")


def _in_a_transaction(conn: Connection, stall: Callable[[], None]) -> None:
    with conn.transaction():
        conn.execute("select 1")
        stall()
        conn.execute("select 2")


def _at_its_end(conn: Connection, stall: Callable[[], None]) -> None:
    with conn.transaction():
        conn.execute("select 1")
        stall()


def _pipelined(conn: Connection, stall: Callable[[], None]) -> None:
    with conn.transaction(), conn.pipeline():
        stall()
        for _ in range(3):
            conn.execute("select 1")


def _performed(conn: Connection, stall: Callable[[], None]) -> None:
    KEEP.run(conn, text="before")
    stall()
    KEEP.run(conn, text="after")


def _performed_for_the_first_time(conn: Connection, stall: Callable[[], None]) -> None:
    stall()
    KEEP.run(conn, text="after")


def _overlapped(conn: Connection, stall: Callable[[], None]) -> None:
    with conn.transaction(), database.overlapped(conn):
        KEEP.run(conn, text="before")
        stall()
        KEEP.run(conn, text="after")


@pytest.mark.parametrize(
    "call",
    [
        _plain,
        _in_a_transaction,
        _at_its_end,
        _pipelined,
        _performed,
        _performed_for_the_first_time,
        _overlapped,
    ],
)
def test_a_call_that_hears_nothing_ends_and_closes_its_connection(
    through: Database, proxy: Proxy, call: Callable[[Connection, Callable[[], None]], None]
) -> None:
    conn = through.connect("test", silence=0.5)
    began = time.monotonic()
    with pytest.raises(psycopg.OperationalError) as raised:
        call(conn, proxy.stall)
    assert 0.5 <= time.monotonic() - began < 5
    assert isinstance(raised.value, Silent)
    assert is_transient(raised.value)
    assert conn.closed


def test_what_is_performed_is_done_at_once_or_with_its_transaction(through: Database) -> None:
    with through.connect("test") as conn:
        KEEP.run(conn, text="alone")
        with conn.transaction(force_rollback=True):
            KEEP.run(conn, text="undone")
        with conn.transaction(), conn.pipeline():
            KEEP.run(conn, text="piped")
            KEEP.run(conn, text="pipe2")
    assert kept(through) == ["alone", "pipe2", "piped"]


@pytest.mark.parametrize("length", [1 << 20, 50 << 20])
def test_what_is_performed_may_be_large(through: Database, length: int) -> None:
    with through.connect("test") as conn:
        KEEP.run(conn, text="x" * length)
    assert [len(text) for text in kept(through)] == [length]


def test_a_statement_that_fails_leaves_its_connection_as_it_was(through: Database) -> None:
    with through.connect("test") as conn:
        with pytest.raises(psycopg.errors.CheckViolation, match="kept_text_check") as refused:
            KEEP.run(conn, text="bad")
        assert refused.value.diag.constraint_name == "kept_text_check"
        with pytest.raises(psycopg.DataError):
            KEEP.run(conn, text="nul\0")
        KEEP.run(conn, text="good")
    assert kept(through) == ["good"]


class Told(NamedTuple):
    number: int
    moment: datetime
    id: UUID
    texts: list[str | None]
    flags: list[bool]
    ratio: float
    nothing: str | None


TELL: Statement[Told] = Statement(
    row=Told,
    sql="""
    select %(number)s::bigint, %(moment)s::timestamptz, %(id)s::uuid, %(texts)s::text[],
        %(flags)s::bool[], %(ratio)s::float8, %(nothing)s::text
    """,
)
COUNT: Statement[int] = Statement(row=int, sql="select count(*) from kept")


def test_rows_that_are_performed_are_those_that_were_sent(through: Database) -> None:
    given = Told(
        -(1 << 62), datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), UUID(int=7),
        ["", "a,b", '{"\\}', None, "null", "é\n"], [True, False], float("inf"), None,
    )  # fmt: skip
    with through.connect("test") as conn:
        for _ in range(2):  # the second is prepared already
            assert TELL.all(conn, **given._asdict()) == [given]
        with pytest.raises(TypeError, match="set"):
            KEEP.run(conn, text={"a"})
        assert COUNT.only(conn) == 0


def test_overlapped_statements_are_done_in_order_and_all_of_them(through: Database) -> None:
    with through.connect("test") as conn:
        with conn.transaction(), database.overlapped(conn):
            for n in range(3):
                KEEP.run(conn, text=f"{n}")
            assert COUNT.only(conn) == 3
            KEEP.run(conn, text="last")
        assert conn.info.transaction_status is TransactionStatus.IDLE
    assert kept(through) == ["0", "1", "2", "last"]


def _overlap(conn: Connection, texts: list[str], error: Exception | None = None) -> None:
    with conn.transaction(), database.overlapped(conn):
        for text in texts:
            KEEP.run(conn, text=text)
        if error is not None:
            raise error


@pytest.mark.parametrize("texts", [["bad"], ["bad", "next"], ["first", "bad"]])
def test_an_overlapped_statement_that_fails_undoes_all(through: Database, texts: list[str]) -> None:
    with through.connect("test") as conn:
        with pytest.raises(psycopg.errors.CheckViolation):
            _overlap(conn, texts)
        KEEP.run(conn, text="good")
    assert kept(through) == ["good"]


@pytest.mark.parametrize("text", ["bad", "good"])
def test_what_fails_while_a_reply_is_on_its_way_is_what_is_told(
    through: Database, text: str
) -> None:
    with through.connect("test") as conn:
        with pytest.raises(ValueError, match="mine"):
            _overlap(conn, [text], ValueError("mine"))
        KEEP.run(conn, text="after")
    assert kept(through) == ["after"]


def test_what_somebody_has_deallocated_is_prepared_again(through: Database) -> None:
    with through.connect("test") as conn:
        KEEP.run(conn, text="before")
        conn.execute("deallocate all")
        KEEP.run(conn, text="after")
        assert COUNT.only(conn) == 2
        conn.execute("deallocate perform_1")
        KEEP.run(conn, text="last")
        assert COUNT.only(conn) == 3
    assert kept(through) == ["after", "before", "last"]


def test_a_rollback_leaves_what_is_prepared_as_it_was(through: Database) -> None:
    """The driver deallocates everything after one, if it has prepared anything itself."""
    with through.connect("test") as conn:
        for _ in range(2):
            for _ in range(10):
                conn.execute("select count(*) from kept")
            KEEP.run(conn, text="kept")
            with conn.transaction(force_rollback=True):
                for _ in range(10):
                    conn.execute("select count(*) from kept")
                KEEP.run(conn, text="undone")
            with conn.transaction():
                KEEP.run(conn, text="kept")
    assert kept(through) == ["kept"] * 4


def test_what_is_performed_on_a_session_that_is_ended_is_transient(through: Database) -> None:
    with through.connect("test") as conn, through.connect("other") as other:
        KEEP.run(conn, text="before")
        other.execute("select pg_terminate_backend(%s, 5000)", [conn.session])
        with pytest.raises(psycopg.OperationalError) as raised:
            KEEP.run(conn, text="after")
        assert is_transient(raised.value)
        assert conn.broken


def test_a_reply_that_keeps_coming_may_take_as_long_as_it_likes(through: Database) -> None:
    with through.connect("test", silence=1.5) as conn:
        rows = conn.execute(
            "select repeat('x', 20000), pg_sleep(0.4) from generate_series(1, 6)"
        ).fetchall()
    assert len(rows) == 6


def test_a_connection_that_is_not_answered_is_not_waited_for(
    through: Database, proxy: Proxy
) -> None:
    proxy.stall()
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable):
        through.connect("test")
    assert time.monotonic() - began < 12


def test_every_connection_gives_up_in_fifteen_seconds(through: Database) -> None:
    with through.connect("test") as conn, through.connection() as pooled:
        assert conn.silence == 15
        assert isinstance(pooled, connections.Impatient)
        assert pooled.silence == 15
        (timeout,) = conn.execute("show statement_timeout").fetchone() or ()
    assert timeout == "10s"  # so that a slow statement is told from a silent network


def test_a_pooled_connection_is_used_again(through: Database) -> None:
    seen = set()
    for _ in range(5):
        with through.connection() as conn:
            seen.add(conn.info.backend_pid)
    assert len(seen) == 1


def test_more_connections_than_the_pool_may_have_are_waited_for(through: Database) -> None:
    with through.connection() as one, through.connection() as two, through.connection() as three:
        assert len({each.info.backend_pid for each in (one, two, three)}) == 3
        with (
            pytest.raises(DatabaseUnavailable, match=r"came free in 0\.2 seconds"),
            through.connection(0.2),
        ):
            pytest.fail("there is no fourth")
    with through.connection(0.2) as again:
        again.execute("select 1")


def test_what_waits_for_a_pooled_connection_gets_the_first_that_comes_free(
    through: Database,
) -> None:
    got = threading.Event()

    def wait() -> None:
        with through.connection() as conn:
            conn.execute("select 1")
            got.set()

    with through.connection(), through.connection():
        with through.connection():
            thread = threading.Thread(target=wait)
            thread.start()
            assert not got.wait(0.2)
        assert got.wait(5)
    thread.join()


def test_a_pooled_connection_that_the_server_has_closed_is_not_handed_out(
    through: Database, conn: Connection, eventually: Any
) -> None:
    with through.connection() as pooled:
        pid = pooled.info.backend_pid
    conn.execute("select pg_terminate_backend(%s, 5000)", [pid])
    with through.connection() as pooled:
        pooled.execute("select 1")
        assert pooled.info.backend_pid != pid


def test_a_pool_waits_out_a_restart(through: Database, proxy: Proxy) -> None:
    with through.connection():
        pass
    proxy.refuse()
    timer = threading.Timer(1.0, proxy.go)
    timer.start()
    with through.connection() as conn:
        conn.execute("select 1")
    timer.join()


def test_a_pool_is_back_as_soon_as_its_database_is(through: Database, proxy: Proxy) -> None:
    """However long that took, and however often it was asked for meanwhile."""
    with through.connection(), through.connection():
        pass
    proxy.refuse()
    for _ in range(6):
        with pytest.raises(DatabaseUnavailable), through.connection(0.6):
            pytest.fail("there is no database")
    proxy.go()
    began = time.monotonic()
    with through.connection() as conn:
        conn.execute("select 1")
    assert time.monotonic() - began < 1.5


def test_a_closed_pool_closes_what_comes_back_late(through: Database) -> None:
    with through.connection() as conn:
        through.close()
        conn.execute("select 1")
    assert conn.closed
    with through.connection() as fresh:
        fresh.execute("select 1")


@pytest.mark.parametrize("many", [False, True])
def test_an_invocation_goes_round_connections_that_have_fallen_silent(
    proxy: Proxy, conductor: Any, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    monkeypatch.setattr(database, "GRACE", -8.5)
    with type(conductor).create(proxy.url) as through:
        with through.database.connection(), through.database.connection():
            pass  # two that lie there
        proxy.stall_open()
        began = time.monotonic()
        ids = (
            through.invoke_many("t", [None] * 5000, queue="q")
            if many
            else [through.invoke("t", queue="q")]
        )
        assert time.monotonic() - began < 10
        assert through.get(ids[-1]) is not None
    with conductor.database.connection() as conn:
        (there,) = conn.execute("select count(*) from conductor.live").fetchone()
    assert there == len(ids) == len(set(ids))


def test_an_invocation_that_arrives_after_it_was_sent_again_is_not_carried_out(
    proxy: Proxy, conductor: Any, conn: Connection, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "GRACE", -8.5)
    with type(conductor).create(proxy.url) as through:
        through.invoke("t", queue="q")  # from now on one message is all it takes
        proxy.stall_open()
        id = through.invoke("t", queue="q")
        assert through.get(id) is not None
    conn.execute("delete from conductor.live")  # it has run, and was not to be kept
    proxy.deliver()
    sessions = """select from pg_stat_activity
        where application_name = 'conductor pool' and datname = current_database()"""
    eventually(lambda: conn.execute(sessions).fetchone() is None)
    assert conn.execute("select count(*) from conductor.live").fetchone() == (0,)


def test_a_client_of_a_silent_database_is_told_so(
    proxy: Proxy, conductor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "GRACE", -8.5)
    monkeypatch.setattr(database, "PATIENCE", 1.0)
    with type(conductor).create(proxy.url) as through:
        id = through.invoke("t", queue="q")
        proxy.stall()
        for call in (lambda: through.get(id), lambda: through.invoke("t", queue="q")):
            with pytest.raises(DatabaseUnavailable):
                call()
        proxy.go()
        assert through.get(id) is not None


def test_a_connection_whose_file_is_anothers_by_now_lets_it_alone(through: Database) -> None:
    robbed = through.connect("test")
    number = robbed.fileno()
    os.close(number)
    with through.connect("test") as other:
        assert other.fileno() == number
        for call in (lambda: robbed.execute("select 1"), lambda: _in_a_block(robbed)):
            with pytest.raises(Robbed) as raised:
                call()
            assert is_transient(raised.value)
        assert robbed.closed
        robbed.close()
        assert other.execute("select 2").fetchone() == (2,)


def _in_a_block(conn: Connection) -> None:
    with conn.transaction():
        conn.execute("select 1")
