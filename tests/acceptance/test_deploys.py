"""An old and a new version of the command and of its tasks on one database."""

from __future__ import annotations

import itertools
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from conductor_cli import Conductor
from tests.support.command import Done, Project, Running, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]

TICKING = """
from conductor_cli import cron, task

@task(max_attempts={attempts}, triggers=[cron("* * * * * *", name="{name}", missed="all")])
def tick() -> str:
    return "{name}"

@task
def greet(name: str) -> str:
    return f"{{name}} from {name}"
"""


class Newer:
    """A newer version of the package: a copy of this one with one more migration."""

    def __init__(self, folder: Path, sql: str, *, breaking: bool) -> None:
        for part in ("conductor_cli", "migrations"):
            shutil.copytree(
                ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__")
            )
        header = f"-- breaking: {str(breaking).lower()}\n-- why: a newer version\n\n"
        (folder / "migrations" / "0900_come_later.sql").write_text(f"{header}{sql}\n")
        self._folder = folder

    def start(self, project: Project, *words: str) -> Running:
        env = project.environment({"PYTHONPATH": str(self._folder)})
        return Running([sys.executable, "-m", "conductor_cli", *words], project.folder, env)

    def run(self, project: Project, *words: str) -> Done:
        began = time.monotonic()
        with self.start(project, *words) as running:
            code = running.end()
            return Done(code, running.out, running.err, time.monotonic() - began)


@pytest.fixture
def newer(tmp_path: Path) -> Callable[..., Newer]:
    return lambda sql, breaking: Newer(tmp_path / "newer", sql, breaking=breaking)


@pytest.fixture
def project(tmp_path: Path, database_url: str) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    return Project(folder, database_url)


@pytest.fixture
def client(database_url: str) -> Iterator[Conductor]:
    with Conductor.create(database_url) as made:
        yield made


def _rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as conn:
        return conn.execute(query).fetchall()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_breaking_migration_makes_an_old_server_drain_and_exit_with_3(
    project: Project, client: Conductor, newer: Any, processes: str
) -> None:
    later = newer("create table conductor.later ();", breaking=True)
    with project.start("start-server", "--processes", processes) as old:
        old.wait_until_ready()
        id = client.invoke("short", {"name": "ran"}, queue="default")
        eventually(lambda: project.marks("ran"))
        done = later.run(project, "migrate")
        assert (done.code, "Applied 0900_come_later" in done.out) == (0, True), done
        assert old.end() == 3
        assert "newer than this program" in old.err
        assert "Install a newer conductor-cli" in old.err
    found = client.get(id)
    assert found is not None
    assert (found.state, found.runs) == ("completed", 1)
    assert _rows(project.url, "select count(*) from conductor.orchestrators") == [(0,)]
    for words in (["start-server"], ["drain"], ["migrate"], ["status"]):
        refused = project.run(*words)
        assert refused.code == 3, (words, refused)
    with later.start(project, "start-server") as new:
        new.wait_until_ready()
        assert client.wait(client.invoke("greet", {"name": "you"}), timeout=20) == "Hello, you!"
        new.signal(signal.SIGTERM)
        assert new.end() == 0


def test_an_old_server_works_on_beside_a_newer_one_that_only_adds(
    project: Project, client: Conductor, newer: Any
) -> None:
    later = newer(
        "alter table conductor.live add column extra text;"
        "alter table conductor.history add column extra text;",
        breaking=False,
    )
    with project.start("start-server") as old:
        old.wait_until_ready()
        ids = [client.invoke("greet", {"name": str(n)}) for n in range(5)]
        with later.start(project, "start-server") as new:
            new.wait_until_ready()
            assert _rows(project.url, "select max(version) from conductor.migrations") == [(900,)]
            ids += client.invoke_many("greet", [{"name": str(n)} for n in range(200)])
            for id in ids:
                assert client.wait(id, timeout=20).startswith("Hello, ")
            new.signal(signal.SIGTERM)
            assert new.end() == 0
        assert client.wait(client.invoke("greet", {"name": "you"}), timeout=20) == "Hello, you!"
        old.signal(signal.SIGTERM)
        assert old.end() == 0
    with project.start("start-server") as again:
        again.wait_until_ready()


def test_of_a_migrator_that_is_killed_nothing_is_left_and_the_next_completes(
    project: Project, newer: Any
) -> None:
    later = newer(
        "create table conductor.half ();"
        "select pg_sleep(60) where to_regclass('public.gate') is not null;"
        "create table conductor.other_half ();",
        breaking=False,
    )
    with psycopg.connect(project.url, autocommit=True) as conn:
        conn.execute("create table public.gate ()")
        with later.start(project, "migrate") as killed:
            sleeps = (
                "select from pg_stat_activity "
                "where wait_event = 'PgSleep' and datname = current_database()"
            )
            eventually(lambda: conn.execute(sleeps).fetchone() is not None)
            killed.signal(signal.SIGKILL)
            assert killed.end() == -signal.SIGKILL
        conn.execute("drop table public.gate")
    assert _rows(project.url, "select to_regclass('conductor.half') is null") == [(True,)]
    done = later.run(project, "migrate")
    assert (done.code, "Applied 0900_come_later" in done.out) == (0, True), done
    assert done.seconds < 20  # and not until the killed one's statement would have ended
    assert _rows(project.url, "select to_regclass('conductor.other_half') is null") == [(False,)]


def test_of_migrators_at_once_each_migration_is_applied_by_one(
    tmp_path: Path, empty_database_url: str
) -> None:
    project = Project(tmp_path, empty_database_url)
    running = [project.start("migrate") for _ in range(3)]
    lines: list[str] = []
    for each in running:
        with each:
            assert each.end() == 0, each.err
            lines += each.out.splitlines()
    applied = Counter(line for line in lines if line.startswith("Applied "))
    assert len(applied) == len(list((ROOT / "migrations").iterdir()))
    assert set(applied.values()) == {1}


def test_a_migration_under_load_holds_work_up_for_three_seconds_at_most(
    project: Project, client: Conductor, newer: Any
) -> None:
    later = newer("alter table conductor.live add column extra text;", breaking=False)
    waits = []
    with project.start("start-server") as server, psycopg.connect(project.url) as holder:
        server.wait_until_ready()
        holder.execute("select count(*) from conductor.live")  # a long transaction of somebody's
        with later.start(project, "migrate") as migrator:
            while migrator.process.poll() is None:
                began = time.monotonic()
                id = client.invoke("greet", {"name": "you"}, queue="default")
                assert client.wait(id, timeout=20) == "Hello, you!"
                waits.append(time.monotonic() - began)
                if waits[-1] > 0.5:  # the migrator has waited for it, and others for the migrator
                    holder.rollback()
            assert migrator.end() == 0, migrator.err
    assert 0.5 < max(waits) < 3, max(waits)
    assert _rows(project.url, "select max(version) from conductor.migrations") == [(900,)]


def test_a_schedule_renamed_by_a_deploy_ticks_once_a_second_under_one_name_at_a_time(
    tmp_path: Path, database_url: str, client: Conductor
) -> None:
    versions = []
    for name, attempts in (("before", 3), ("after", 5)):
        folder = tmp_path / name
        folder.mkdir()
        versions.append(Project(folder, database_url))
        (folder / "work.py").write_text(TICKING.format(name=name, attempts=attempts))
    before, after = versions
    with before.start("start-server") as old:
        old.wait_until_ready()
        eventually(lambda: _ticks(database_url, "before"))
        with after.start("start-server") as new:
            new.wait_until_ready()
            eventually(lambda: _ticks(database_url, "after"))
            last_of_old = max(_ticks(database_url, "before"))
            with before.start("start-server") as restarted:  # as a crash in mid-deploy has it
                restarted.wait_until_ready()
                restarted.wait_for("tasks.superseded")
                old.signal(signal.SIGTERM)
                assert old.end() == 0
                count = len(_ticks(database_url, "after"))
                eventually(lambda: len(_ticks(database_url, "after")) >= count + 3)
                restarted.signal(signal.SIGTERM)
                assert restarted.end() == 0
            new.signal(signal.SIGTERM)
            assert new.end() == 0
    assert max(_ticks(database_url, "before")) <= last_of_old
    for name in ("before", "after"):
        ticks = _ticks(database_url, name)
        assert len(ticks) == len(set(ticks)), ticks
        assert [b - a for a, b in itertools.pairwise(ticks)] == [1] * (len(ticks) - 1)
    assert _rows(database_url, "select name from conductor.schedules") == [("after",)]


def _ticks(url: str, name: str) -> list[int]:
    """The moments for which a schedule has made executions, in seconds."""
    query = f"""
        select extract(epoch from (event ->> 'scheduled_for')::timestamptz)::int
        from (select event from conductor.live union all select event from conductor.history) e
        where event ->> 'name' = '{name}' order by 1
    """
    return [moment for (moment,) in _rows(url, query)]
