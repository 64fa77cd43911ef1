"""Two versions of a program on one database, and a schema that grows under a running server."""

from __future__ import annotations

import threading
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any

import pytest

from conductor_cli import Conductor, State, cron, maintenance, migrate, task
from conductor_cli.database import Database
from conductor_cli.errors import SchemaTooNew

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = Path(__file__).parents[2] / "migrations"


@task
def plain(n: int) -> int:
    return n


@pytest.fixture
def apply(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Applies a migration as a newer program would; this one does not have it."""
    newer = copytree(FILES, tmp_path / "migrations")
    mine = migrate._folder

    def go(sql: str, *, breaking: bool) -> None:
        text = f"-- breaking: {str(breaking).lower()}\n-- why: a test\n\n{sql}\n"
        (newer / "0900_change_it.sql").write_text(text)
        here = threading.get_ident()  # the servers' threads look meanwhile
        monkeypatch.setattr(
            migrate, "_folder", lambda: newer if threading.get_ident() == here else mine()
        )
        database = Database(database_url)
        migrate.upgrade(database)
        database.close()
        monkeypatch.setattr(migrate, "_folder", mine)

    return go


def test_a_running_server_drains_and_leaves_when_the_schema_outgrows_it(
    conductor: Conductor, start: Any, heard: Any, apply: Any, eventually: Any
) -> None:
    go_on = threading.Event()

    @task
    def held() -> str:
        assert go_on.wait(30)
        return "done"

    server = start(held, plain)
    heard.wait("listener.proven")
    id = conductor.invoke(held)
    eventually(lambda: (found := conductor.get(id)) and found.state is State.RUNNING)
    apply("create table conductor.x ();", breaking=True)
    heard.wait("server.stopping")
    later = conductor.invoke(plain, {"n": 1})
    assert not server.stopped.done()
    go_on.set()
    with pytest.raises(SchemaTooNew, match=r"0900.*Install a newer"):
        server.stopped.result(20)
    found, left = conductor.get(id), conductor.get(later)
    assert found is not None
    assert left is not None
    assert (found.state, left.state) == (State.COMPLETED, State.PENDING)


def test_a_server_whose_statements_no_longer_fit_says_that_the_schema_is_newer(
    conductor: Conductor, start: Any, apply: Any
) -> None:
    server = start(plain)
    apply("alter table conductor.orchestrators rename to servers;", breaking=True)
    with pytest.raises(SchemaTooNew, match="0900_change_it"):
        server.stopped.result(20)


def test_a_running_server_works_on_with_a_newer_schema_that_does_not_break_it(
    conductor: Conductor, start: Any, heard: Any, apply: Any
) -> None:
    server = start(plain)
    assert conductor.wait(conductor.invoke(plain, {"n": 1}), timeout=15) == 1
    apply(
        """
        alter table conductor.live add column extra text;
        alter table conductor.history add column extra text default 'x';
        alter table conductor.orchestrators add column extra text;
        alter table conductor.schedules add column extra text;
        create index on conductor.live (group_key) where group_key is not null;
        """,
        breaking=False,
    )
    ids = conductor.invoke_many(plain, [{"n": n} for n in range(50)])
    assert [conductor.wait(id, timeout=15) for id in ids] == list(range(50))
    conductor.cancel(conductor.invoke(plain, {"n": 1}, delay=60))
    assert not server.stopped.done()
    assert heard.count("service.died") == 0


def test_a_schedule_is_renamed_by_the_new_version_and_not_brought_back_by_the_old(
    conductor: Conductor, start: Any, heard: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "REGISTER_EVERY", 0.1)

    def version(name: str, max_attempts: int) -> Any:
        @task(name="report", max_attempts=max_attempts, triggers=[cron("0 3 * * *", name=name)])
        def report() -> None:
            return

        return report

    def in_force() -> tuple[list[str], int]:
        with conductor.database.connection() as conn:
            names = conn.execute("select name from conductor.schedules").fetchall()
            (attempts,) = conn.execute("select max_attempts from conductor.tasks").fetchone()
        return [name for (name,) in names], attempts

    start(version("nightly", 3))
    assert in_force() == (["nightly"], 3)
    new = start(version("renamed", 5))
    assert in_force() == (["renamed"], 5)
    start(version("nightly", 3))  # an old one that restarts
    heard.wait("tasks.superseded")
    for _ in range(20):
        assert in_force() == (["renamed"], 5)
        threading.Event().wait(0.05)
    new.stop()  # a rollback
    eventually(lambda: in_force() == (["nightly"], 3))


def test_pending_executions_of_a_task_that_is_gone_are_left_alone(
    conductor: Conductor, start: Any
) -> None:
    @task
    def gone() -> None:
        return

    old = start(gone, plain)
    id = conductor.invoke(gone, delay=1)
    old.stop()
    start(plain)
    assert conductor.wait(conductor.invoke(plain, {"n": 1}, delay=1.5), timeout=15) == 1
    found = conductor.get(id)
    assert found is not None
    assert (found.state, found.runs) == (State.PENDING, 0)


def test_an_attempt_ends_by_the_options_its_server_knows(
    conductor: Conductor, start: Any, eventually: Any
) -> None:
    """The database's copy of the options, changed meanwhile, is for those without the code."""
    go_on = threading.Event()

    @task(name="changed", max_attempts=2, retry=[0], queue="before")
    def old() -> None:
        go_on.wait(30)
        raise ValueError("no")

    @task(name="changed", max_attempts=1, retry=[0], queue="after", retain_failed=0)
    def new() -> None:
        raise ValueError("no")

    start(old)
    id = conductor.invoke(old)
    eventually(lambda: (found := conductor.get(id)) and found.state is State.RUNNING)
    start(new)
    moved = conductor.invoke("changed")  # by name: where it is at home now
    go_on.set()
    eventually(lambda: (found := conductor.get(id)) and found.state is State.FAILED)
    found = conductor.get(id)
    assert found is not None
    assert (found.failures, found.queue) == (2, "before")
    eventually(lambda: conductor.get(moved) is None, what="not to be kept at all")
