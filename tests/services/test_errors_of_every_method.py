"""Every public method in every state a database can be in: only errors of Conductor come out, and
each says what is the matter.

The methods are found by looking: one that is new has to be given arguments in ``CALLS``.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from conductor_cli import AsyncConductor, Conductor, errors, migrate, task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.postgres import Server

ID: Final = uuid4()


@task
def door(n: int = 1) -> int:
    return n


CALLS: Final[dict[str, tuple[Callable[[Any], Any], ...]]] = {
    "ensure_installed": (lambda c: c.ensure_installed(),),
    "invoke": (
        lambda c: c.invoke(door),
        lambda c: c.invoke(door, id=uuid4()),
        lambda c: c.invoke(door, dedupe_key="k"),
        lambda c: c.invoke("door"),
        lambda c: c.invoke("door", queue="default"),
    ),
    "invoke_many": (
        lambda c: c.invoke_many(door, [{}]),
        lambda c: c.invoke_many(door, [{}] * 3),
        lambda c: c.invoke_many("door", [{}] * 3, queue="default"),
    ),
    "get": (lambda c: c.get(ID),),
    "list": (lambda c: c.list(), lambda c: c.list(state="failed", task=door)),
    "wait": (lambda c: c.wait(ID, timeout=1),),
    "watch": (lambda c: c.watch(ID),),
    "emit": (lambda c: c.emit("a.b", {}),),
    "cancel": (lambda c: c.cancel(ID),),
    "retry": (lambda c: c.retry(ID),),
    "schedule": (lambda c: c.schedule(door, "n", "* * * * *"),),
    "unschedule": (lambda c: c.unschedule(door, "n"),),
    "pause": (lambda c: c.pause("q"),),
    "resume": (lambda c: c.resume("q"),),
}
TALKS_TO_NOBODY: Final = {
    "create", "from_config", "close", "create_worker",
    "event_payload", "child", "children", "row", "rows",  # what the others are made of
}  # fmt: skip
CHANGES: Final = set(CALLS) - {"get", "list", "wait", "watch"}


def methods(kind: type) -> set[str]:
    return {
        name
        for name, value in inspect.getmembers(kind)
        if not name.startswith("_") and callable(value)
    }


@pytest.mark.parametrize("kind", [Conductor, AsyncConductor], ids=lambda kind: kind.__name__)
def test_every_method_is_tried(kind: type) -> None:
    assert methods(kind) - TALKS_TO_NOBODY == set(CALLS)


@dataclass
class Bad:
    """A state: the address that leads to it, and the errors that fit."""

    name: str
    url: str
    fits: tuple[type[Exception], ...]
    says: str
    of_readers: bool = True  # whether methods that only read fail, too
    knows_no_task: bool = False  # but looks for it before it comes to what is the matter
    may_succeed: set[str] = field(default_factory=set)


def with_options(url: str, **given: object) -> str:
    return make_conninfo(url, **{key: str(value) for key, value in given.items()})


@contextmanager
def role(url: str, options: str = "") -> Iterator[str]:
    """A role that may log in, and the address with it."""
    name = f"door_{uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(
            sql.SQL("create role {} login {}").format(sql.Identifier(name), sql.SQL(options))  # type: ignore[arg-type]
        )
        try:
            yield with_options(url, user=name)
        finally:
            admin.execute(sql.SQL("drop owned by {}").format(sql.Identifier(name)))
            admin.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


@contextmanager
def no_schema(server: Server) -> Iterator[Bad]:
    with server.empty() as url:
        yield Bad(
            "no schema", url, (errors.SchemaMissing,), "conductor migrate",
            may_succeed={"ensure_installed"},
        )  # fmt: skip


@contextmanager
def old_schema(server: Server) -> Iterator[Bad]:
    with server.empty() as url:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(migrate.LEDGER)
            for each in migrate.available()[:2]:
                conn.execute(each.sql.encode())
                conn.execute(
                    "insert into conductor.migrations (version, name, checksum, breaking) "
                    "values (%s, %s, %s, %s)",
                    (each.version, each.name, each.checksum, each.breaking),
                )
        yield Bad(
            "an old schema", url, (errors.SchemaMissing,), "conductor migrate", knows_no_task=True,
            may_succeed={"ensure_installed"},
        )  # fmt: skip


@contextmanager
def new_schema(server: Server) -> Iterator[Bad]:
    with server.migrated() as url:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(
                "insert into conductor.migrations (version, name, checksum, breaking) "
                "values (9999, '9999_new', 'x', true)"
            )
            names = [
                row[0]
                for row in conn.execute(
                    "select relname from pg_class where relnamespace = 'conductor'::regnamespace "
                    "and relkind in ('r', 'v') and relname <> 'migrations'"
                )
            ]
            for name in names:
                conn.execute(
                    sql.SQL("alter table conductor.{} rename to {}").format(
                        sql.Identifier(name), sql.Identifier(f"{name}_2")
                    )
                )
        yield Bad("a newer schema", url, (errors.SchemaTooNew,), "newer conductor-cli")


@contextmanager
def no_rights(server: Server) -> Iterator[Bad]:
    with server.migrated() as url, role(url) as theirs:
        yield Bad("no rights", theirs, (errors.PermissionRefused,), "conductor migrate --sql")


REFUSE_WRITES: Final = """
create function public.refuse() returns trigger language plpgsql as $$
begin
    raise exception 'cannot execute % in a read-only transaction', tg_op using errcode = '25006';
end $$;
do $$
declare
    each regclass;
begin
    for each in select oid from pg_class
                where relnamespace = 'conductor'::regnamespace and relkind = 'r' loop
        execute format('create trigger refuse before insert or update or delete on %s '
                       'for each statement execute function public.refuse()', each);
    end loop;
end $$
"""


@contextmanager
def read_only(server: Server) -> Iterator[Bad]:
    """Each statement that writes is refused as a standby refuses it; no trigger sees the lock that
    a cancel of what is not there takes."""
    with server.migrated() as url:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(REFUSE_WRITES)
        yield Bad(
            "read-only", url, (errors.DatabaseReadOnly,), "Connect to the primary",
            of_readers=False, knows_no_task=True, may_succeed={"ensure_installed", "cancel"},
        )  # fmt: skip


@contextmanager
def locked(server: Server) -> Iterator[Bad]:
    with server.migrated() as url, psycopg.connect(url, application_name="the migration") as conn:
        tables = [
            row[0]
            for row in conn.execute(
                "select relname from pg_class where relnamespace = 'conductor'::regnamespace "
                "and relkind = 'r' and relname <> 'migrations'"
            )
        ]
        for name in tables:
            conn.execute(sql.SQL("lock table conductor.{}").format(sql.Identifier(name)))
        yield Bad(
            "locked tables", url, (errors.DatabaseBusy,), "the migration",
            may_succeed={"ensure_installed"},
        )  # fmt: skip


@contextmanager
def no_database(server: Server) -> Iterator[Bad]:
    with server.empty() as url:
        to = with_options(url, dbname="no_such_database")
        yield Bad("no database", to, (errors.CredentialsRefused,), "no_such_database")


@contextmanager
def no_such_user(server: Server) -> Iterator[Bad]:
    with server.migrated() as url:
        to = with_options(url, user="nobody_here")
        yield Bad("no such user", to, (errors.CredentialsRefused,), "nobody_here")


@contextmanager
def no_connection_free(server: Server) -> Iterator[Bad]:
    with server.migrated() as url, role(url, "connection limit 0") as theirs:
        yield Bad("no connection free", theirs, (errors.DatabaseUnavailable,), "no connection left")


@contextmanager
def down(server: Server) -> Iterator[Bad]:
    to = "postgresql://owner@127.0.0.1:1/lab"
    yield Bad("down", to, (errors.DatabaseUnavailable,), "cannot be reached")


STATES: Final = (
    no_schema, old_schema, new_schema, no_rights, read_only, locked, no_database, no_such_user,
    no_connection_free, down,
)  # fmt: skip


def ours(error: BaseException, bad: Bad) -> str | None:
    """What is wrong with an error; None for a good one."""
    text = str(error)
    if not isinstance(error, bad.fits):
        return f"{type(error).__name__}: {text}"
    if bad.says not in text:
        return f"says nothing of {bad.says!r}: {text}"
    if "cannot be reached" in text and bad.name != "down":
        return f"it can be reached: {text}"
    for jargon in ("psycopg", "SQLSTATE", "Traceback", "  ", "..", "\n", "{", "None"):
        if jargon in text:
            return f"holds {jargon!r}: {text}"
    if not re.search(r"[.?]$", text):
        return f"does not end: {text}"
    return None


def outcome(bad: Bad, name: str, call: Callable[[], Any]) -> str | None:
    try:
        found = call()
        if inspect.isgenerator(found):
            next(found)
    except BaseException as error:
        if isinstance(error, errors.UnknownTask) and bad.knows_no_task:
            return None if name == "invoke" else "knows no task"
        if name in {"wait", "watch"} and isinstance(error, errors.ExecutionNotFound):
            return "found nothing" if bad.of_readers else None
        return ours(error, bad)
    if name in bad.may_succeed or (not bad.of_readers and name not in CHANGES):
        return None
    return "went well"


async def _first(found: Any) -> Any:
    return await anext(found) if inspect.isasyncgen(found) else await found


def together(calls: list[tuple[str, Callable[[], str | None]]]) -> dict[str, str]:
    """What is wrong, by call; all at the same time, since most of them wait."""
    with ThreadPoolExecutor(len(calls)) as threads:
        done = [(name, threads.submit(call)) for name, call in calls]
        return {name: wrong for name, each in done if (wrong := each.result()) is not None}


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_a_method_in_a_bad_state_says_what_is_the_matter(state: Any, postgres: Server) -> None:
    with state(postgres) as bad:
        calls = []
        clients = []
        for name, variants in CALLS.items():
            if name == "ensure_installed" and bad.name in {"no schema", "an old schema"}:
                continue  # it would mend the state
            for number, call in enumerate(variants):
                client = Conductor.create(bad.url, pool_size=2)
                clients.append(client)
                calls.append(
                    (
                        f"{name} {number}",
                        lambda c=client, n=name, f=call: outcome(bad, n, lambda: f(c)),
                    )
                )
        try:
            assert together(calls) == {}
        finally:
            for client in clients:
                client.close()


@pytest.mark.parametrize(
    "state", [no_schema, no_rights, read_only, down], ids=lambda state: state.__name__
)
def test_an_awaited_method_says_the_same(state: Any, postgres: Server) -> None:
    with state(postgres) as bad:

        async def tried(name: str, call: Callable[[Any], Any]) -> str | None:
            client = AsyncConductor.create(bad.url, pool_size=2)
            try:
                await _first(call(client))
            except BaseException as error:
                if isinstance(error, errors.ExecutionNotFound) and not bad.of_readers:
                    return None
                return ours(error, bad)
            finally:
                await client.close()
            may = name in bad.may_succeed or (not bad.of_readers and name not in CHANGES)
            return None if may else "went well"

        async def main() -> dict[str, str]:
            names = [n for n in CALLS if n != "ensure_installed"]
            found = await asyncio.gather(*(tried(n, CALLS[n][0]) for n in names))
            return {n: wrong for n, wrong in zip(names, found, strict=True) if wrong is not None}

        assert asyncio.run(main()) == {}
