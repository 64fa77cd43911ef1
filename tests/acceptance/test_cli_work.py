"""The commands that look at work and do it: invoke, drain, executions, status, migrate."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import pytest

from conductor_cli import Conductor, cli
from conductor_cli.models import DrainReport, Execution, State
from tests.support.command import Project, eventually, free_port

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)

EXECUTION = {field.name for field in fields(Execution)}
REPORT = {field.name for field in fields(DrainReport)}
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@pytest.fixture
def project(tmp_path: Path, database_url: str) -> Project:
    return Project(tmp_path, database_url)


def invoke(project: Project, task: str, payload: str = "{}", **options: Any) -> str:
    """Create an execution, not by the command; returns its id."""
    with Conductor.create(project.url) as conductor:
        queue = options.pop("queue", "reports" if task == "build" else "default")
        return str(conductor.invoke(task, json.loads(payload), queue=queue, **options))


def state(project: Project, id: str) -> str:
    """How it stands, not by the command."""
    with Conductor.create(project.url) as conductor:
        found = conductor.get(UUID(id))
        assert found is not None
        return found.state.value


def shown(project: Project, id: str) -> dict[str, Any]:
    found: dict[str, Any] = project.run("executions", "show", id, "--json").json
    return found


# ── invoke ───────────────────────────────────────────────────────────────────────────────


def test_invoke_checks_the_payload_by_the_real_task(project: Project) -> None:
    done = project.run("invoke", "greet", '{"nam": "x"}')
    assert done.code == 2
    assert "missing key 'name'" in done.err
    assert project.run("executions", "--json").json == []


def test_invoke_of_an_unknown_task_names_the_nearest(project: Project) -> None:
    done = project.run("invoke", "gret", "{}")
    assert done.code == 2
    assert "No task is named 'gret'. Did you mean 'greet'?" in done.err


def test_invoke_without_the_modules_uses_the_registered_names(project: Project) -> None:
    project.run("migrate")
    (project.folder / "work.py").write_text("import not_installed_here\n")
    done = project.run("invoke", "build", '{"kind": "x"}')
    assert done.code == 0
    assert "not checked" in done.err
    assert shown(project, done.out.strip())["queue"] == "reports"
    assert "'build'" in project.run("invoke", "biuld").err


def test_invoke_passes_its_options_on(project: Project) -> None:
    options = ("--queue", "other", "--delay", "3600", "--priority", "7", "--dedupe-key", "k")
    done = project.run("invoke", "greet", '{"name": "x"}', *options, "--json")
    assert set(done.json) == {"id"}
    id = done.json["id"]
    found = shown(project, id)
    assert (found["queue"], found["priority"], found["state"]) == ("other", 7, "pending")
    assert project.run("invoke", "greet", '{"name": "y"}', *options).out == f"{id}\n"


@pytest.mark.parametrize(
    "words",
    [
        ("hidden",), ("greet", "[1"), ("greet", '{"name": "x"}', "--priority", "99999"),
        ("greet", '{"name": "x"}', "--delay", "soon"), ("greet", '{"name": "x"}', "--queue", "a b"),
    ],
)  # fmt: skip
def test_what_cannot_be_invoked_is_exit_code_2(project: Project, words: tuple[str, ...]) -> None:
    done = project.run("invoke", *words)
    assert done.code == 2
    assert done.err.startswith("Error: ")
    assert "bug" not in done.err


# ── drain ────────────────────────────────────────────────────────────────────────────────


def test_drain_works_everything_off(project: Project) -> None:
    ids = [invoke(project, "greet", '{"name": "x"}'), invoke(project, "build", '{"kind": "x"}')]
    report = project.run("drain", "--json").json
    assert set(report) == REPORT
    assert (report["completed"], report["failed"], report["timed_out"]) == (2, 0, False)
    assert report["failures"] == []
    for id in ids:
        found = shown(project, id)
        assert set(found) == EXECUTION
        assert found["state"] == "completed"
        assert MOMENT.fullmatch(found["finished_at"])


def test_drain_of_one_queue_leaves_the_others(project: Project) -> None:
    one, other = invoke(project, "greet", '{"name": "x"}'), invoke(project, "build", '{"kind": ""}')
    assert project.run("drain", "--queue", "reports").code == 0
    assert state(project, other) == "completed"
    assert state(project, one) == "pending"
    done = project.run("drain", "--queue", "reprots")
    assert done.code == 2
    assert "reports" in done.err


def test_drain_with_a_failed_execution_is_exit_code_1(project: Project) -> None:
    id = invoke(project, "fail")
    done = project.run("drain", "--json")
    report = json.loads(done.out)
    assert (done.code, report["failed"], report["failures"][0]["id"]) == (1, 1, id)
    assert set(report["failures"][0]) == EXECUTION
    assert report["failures"][0]["error"]["message"].startswith("broken")


def test_drain_with_an_execution_to_be_retried_is_exit_code_1(project: Project) -> None:
    invoke(project, "fail_later")
    done = project.run("drain")
    assert done.code == 1
    assert "1 to be retried" in done.out


def test_drain_retries_at_once_when_asked_to(project: Project) -> None:
    id = invoke(project, "fail_once")
    assert project.run("drain", "--retry-now").code == 0
    found = shown(project, id)
    assert (found["result"], found["failures"]) == (2, 1)


def test_drain_waits_for_what_is_due_later_when_asked_to(project: Project) -> None:
    id = invoke(project, "greet", '{"name": "x"}', delay=1.5)
    assert project.run("drain", "--json").json["left_scheduled"] == 1
    assert project.run("drain", "--wait-until-empty").code == 0
    assert state(project, id) == "completed"


def test_drain_past_its_timeout_is_exit_code_4_and_hands_back(
    tmp_path: Path, database_url: str
) -> None:
    project = Project(tmp_path, database_url, shutdown_timeout=3.0)
    id = invoke(project, "stay", '{"name": "timeout"}')
    invoke(project, "fail")
    done = project.run("drain", "--timeout", "1", "--json")
    assert done.code == 4  # beats the 1 of the failure
    assert json.loads(done.out)["timed_out"] is True
    found = shown(project, id)
    assert (found["state"], found["runs"]) == ("pending", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_drain_that_is_told_to_stop_is_exit_code_4(
    project: Project, number: signal.Signals
) -> None:
    id = invoke(project, "short", '{"name": "short"}')
    invoke(project, "greet", '{"name": "x"}', delay=3600)
    with project.start("drain", "--wait-until-empty") as drain:
        eventually(lambda: project.marks("short"))
        drain.signal(number)
        assert drain.end(within=5) == 4
    assert state(project, id) == "completed"


def test_what_a_task_forks_can_be_ended_by_a_signal(project: Project) -> None:
    id = invoke(project, "fork")
    assert project.run("drain", "--timeout", "10").code == 0
    assert shown(project, id)["result"] == signal.SIGTERM


def test_drain_brings_an_empty_database_up_to_date(tmp_path: Path, empty_database_url: str) -> None:
    project = Project(tmp_path, empty_database_url)
    assert project.run("drain").code == 0
    assert project.run("migrate", "--status").code == 0


# ── executions ───────────────────────────────────────────────────────────────────────────


def test_executions_are_listed_by_filters(project: Project) -> None:
    failed = invoke(project, "fail")
    project.run("drain")
    waiting = invoke(project, "build", '{"kind": "x"}')
    everything = project.run("executions", "--json").json
    assert [each["id"] for each in everything] == [waiting, failed]
    assert all(set(each) == EXECUTION for each in everything)

    def ids(*filters: str) -> list[str]:
        return [each["id"] for each in project.run("executions", "list", *filters, "--json").json]

    assert ids("--state", "failed") == ids("--error", "broken") == ids("--task", "fail") == [failed]
    assert ids("--queue", "reports") == ids("--limit", "1") == [waiting]
    assert ids("--since", "1h") == [waiting, failed]
    assert ids("--since", "2999-01-01") == ids("--group", "x") == []
    for wrong in (("--since", "yesterday"), ("--state", "open"), ("--limit", "0")):
        assert project.run("executions", *wrong).code == 2


def test_a_listing_in_a_pipe_has_one_line_each_whatever_they_hold(project: Project) -> None:
    invoke(project, "fail")
    project.run("drain")
    lines = project.run("executions").out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("id\ttask\t")
    assert "broken\\x1b[31m" in lines[1]


def test_an_execution_is_found_by_the_beginning_of_its_id(project: Project) -> None:
    id = invoke(project, "greet", '{"name": "x"}')
    assert shown(project, id[:13])["id"] == id
    assert shown(project, id.replace("-", "").upper())["id"] == id
    invoke(project, "greet", '{"name": "x"}')
    ambiguous = project.run("executions", "show", id[:4])
    assert ambiguous.code == 2
    assert id in ambiguous.err
    assert project.run("executions", "show", "ffffffff").code == 1
    assert project.run("executions", "show", "ffffffff-0000-7000-8000-000000000000").code == 1
    assert project.run("executions", "show", "what").code == 2


def test_show_says_why_an_execution_is_not_running(project: Project) -> None:
    first = invoke(project, "greet", '{"name": "x"}')
    later = invoke(project, "build", '{"kind": "x"}', delay=7200)
    strange = invoke(project, "nobody.knows")
    retried = invoke(project, "fail_later", priority=9)

    def why(id: str) -> str:
        return project.run("executions", "show", id).out.splitlines()[-1]

    assert "No server serves its queue 'default'" in why(first)
    assert re.search(r"scheduled for .*Z, in 2 h\. No server serves its queue", why(later))
    project.run("drain", "--queue", "default")
    assert re.search(r"has failed once, and will be retried at .*Z, in 60 min", why(retried))
    running = invoke(project, "stay", '{"name": "why"}', queue="reports", priority=9)
    with psycopg.connect(project.url, autocommit=True) as conn:
        conn.execute(
            "insert into conductor.orchestrators (id, started_at, beat_at, timeout, version, "
            "hostname, pid, queues) values (%s, now(), now(), 60, '1', 'there', 7, "
            "array['default', 'reports'])",
            [running],
        )
        assert "No server serves the task 'nobody.knows'" in why(strange)
        ahead = invoke(project, "greet", '{"name": "x"}')
        assert "1 is ahead of it" in why(ahead)  # the strange one, which a claim passes over
        conn.execute(
            "update conductor.live set state = 'x', owner = id, token = 1 where id = %s", [running]
        )
        assert "It runs on there (pid 7)." in why(running)
        project.run("executions", "cancel", running)
        assert "asked to stop" in why(running)


def test_retry_and_cancel_by_id_tell_what_they_changed(project: Project) -> None:
    id = invoke(project, "fail")
    project.run("drain")
    (again,) = project.run("executions", "retry", id[:20], "--json").json
    assert (again["id"], again["state"], again["failures"]) == (id, "pending", 0)
    done = project.run("executions", "retry", id)
    assert done.code == 1
    assert "it is pending" in done.out
    done = project.run("executions", "cancel", id, "--reason", "enough")
    assert (done.code, done.out) == (0, f"{id} cancelled.\n")
    assert shown(project, id)["error"]["message"] == "enough"
    assert project.run("executions", "cancel", id).code == 1
    assert project.run("executions", "cancel", "ffffffff").code == 1


def test_retry_and_cancel_by_filters_only_show_until_told_yes(project: Project) -> None:
    ids = {invoke(project, "fail"), invoke(project, "fail")}
    project.run("drain")
    shown_only = project.run("executions", "retry", "--task", "fail")
    assert shown_only.code == 1
    assert "2 would be retried" in shown_only.err
    assert "--yes" in shown_only.err
    assert all(id in shown_only.out for id in ids)
    assert project.run("executions", "--state", "pending", "--json").json == []
    assert project.run("executions", "retry", "--task", "fail", "--yes").out == "2 of 2 retried.\n"
    assert project.run("executions", "cancel", "--task", "fail", "--yes").code == 0
    assert {e["state"] for e in project.run("executions", "--json").json} == {"cancelled"}
    assert project.run("executions", "cancel", "--task", "fail", "--yes").code == 1
    for wrong in (
        ("retry",),
        ("retry", "--state", "running", "--yes"),
        ("cancel", "a", "--task", "b"),
    ):
        assert project.run("executions", *wrong).code == 2


# ── status, migrate ──────────────────────────────────────────────────────────────────────


def test_status_without_servers_names_what_nobody_serves(project: Project) -> None:
    invoke(project, "greet", '{"name": "x"}')
    found = project.run("status", "--json").json
    assert (found["servers"], found["leader"]) == ([], None)
    assert [(each["queue"], each["ready"]) for each in found["queues"]] == [("default", 1)]
    assert [(each["queue"], each["task"]) for each in found["unserved"]] == [("default", "greet")]
    assert "conductor start-server" in project.run("status").out


def test_migrate_brings_an_empty_database_to_the_latest_version(
    tmp_path: Path, empty_database_url: str
) -> None:
    project = Project(tmp_path, empty_database_url)
    before = project.run("migrate", "--status", "--json")
    assert before.code == 1
    assert {each["state"] for each in json.loads(before.out)} == {"pending"}
    done = project.run("migrate")
    assert done.code == 0
    assert "Applied 0001_create_schema" in done.out
    assert re.search(r"Registered \d+ tasks and 1 schedule\.", done.out)
    after = project.run("migrate", "--status", "--json")
    assert {each["state"] for each in after.json} == {"applied"}
    assert project.run("migrate", "--json").json["applied"] == []
    with psycopg.connect(empty_database_url) as conn:
        found = conn.execute("select task, name, queue from conductor.schedules").fetchall()
    assert found == [("build", "daily", "reports")]


def test_the_sql_of_migrate_can_be_applied_by_hand(tmp_path: Path, empty_database_url: str) -> None:
    project = Project(tmp_path, empty_database_url)
    text = project.run("migrate", "--sql").out
    assert "grant usage on schema conductor" in text
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute(text.encode())
    assert project.run("migrate", "--status").code == 0
    assert "create table" not in project.run("migrate", "--sql").out


def test_the_sql_of_migrate_needs_no_database(tmp_path: Path) -> None:
    project = Project(tmp_path, f"postgresql://bob@127.0.0.1:{free_port()}/app")
    done = project.run("migrate", "--sql")
    assert done.code == 0
    assert "create table conductor.live" in done.out
    assert "cannot be reached" in done.err
    assert "create table conductor.live" in Project(tmp_path, "").run("migrate", "--sql").out


@pytest.mark.parametrize("words", [("migrate",), ("drain",), ("status",), ("start-server",)])
def test_a_newer_schema_is_exit_code_3(project: Project, words: tuple[str, ...]) -> None:
    with psycopg.connect(project.url, autocommit=True) as conn:
        conn.execute(
            "insert into conductor.migrations (version, name, checksum, breaking) "
            "values (9999, '9999_turn_everything_round', 'x', true)"
        )
    done = project.run(*words)
    assert done.code == 3
    assert "9999_turn_everything_round" in done.err


def test_retry_may_begin_anew(project: Project) -> None:
    id = invoke(project, "fail")
    project.run("drain")
    (again,) = project.run("executions", "retry", id, "--restart", "--json").json
    assert (again["id"], again["state"], again["failures"]) == (id, "pending", 0)


# ── What was done, and what is waited for ────────────────────────────────────────────────


def test_a_retry_says_so_also_of_one_that_runs_by_now(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    id = invoke(project, "greet", '{"name": "x"}')
    with Conductor.create(project.url) as conductor:
        conductor.cancel(UUID(id))
    real = Conductor.get

    def running(conductor: Conductor, id: UUID) -> Execution | None:
        found = real(conductor, id)
        assert found is not None
        return replace(found, state=State.RUNNING)

    monkeypatch.setattr(Conductor, "retry", lambda *_: True)
    monkeypatch.setattr(Conductor, "get", running)
    monkeypatch.setenv("CONDUCTOR_DATABASE_URL", project.url)
    assert cli.main(["executions", "retry", id]) == 0
    assert capsys.readouterr().out == f"{id} retried.\n"
    monkeypatch.setattr(Conductor, "cancel", lambda *_: True)
    assert cli.main(["executions", "cancel", id]) == 0
    assert capsys.readouterr().out == f"{id} asked to stop.\n"


def test_a_retry_that_changes_nothing_says_so(project: Project) -> None:
    id = invoke(project, "greet", '{"name": "x"}')
    done = project.run("executions", "retry", id)
    assert (done.code, done.out) == (1, f"{id} not retried: it is pending.\n")
    assert done.err == "Nothing changed.\n"


@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_a_wait_that_nobody_serves_says_why_and_ends_in_time(
    project: Project, json_flag: tuple[str, ...]
) -> None:
    words = ("invoke", "greet", '{"name": "x"}', "--wait", "--timeout", "2s", *json_flag)
    assert project.run("migrate").code == 0
    done = project.run(*words)
    assert done.code == 4
    waiting, why, late = done.err.splitlines()
    assert waiting.startswith("Waiting for ")
    assert why.startswith("No server serves its queue 'default': start one with `conductor start")
    assert late.startswith("Error: Execution ")
    assert "has not ended after 2 s. No server serves" in late
    assert bool(done.out) == bool(json_flag)
    if json_flag:
        assert json.loads(done.out)["state"] == "pending"


def test_a_wait_says_that_its_queue_is_paused_or_when_it_is_due(project: Project) -> None:
    assert project.run("migrate").code == 0
    assert project.run("queues", "pause", "default").code == 0
    words = ("invoke", "greet", '{"name": "x"}', "--wait", "--timeout", "1.5")
    assert "`conductor queues resume default`" in project.run(*words).err
    later = project.run(*words, "--delay", "1h").err
    assert re.search(r"It is scheduled for .*Z, in 60 min\.", later)


def test_a_wait_goes_on_when_its_server_comes(project: Project) -> None:
    assert project.run("migrate").code == 0
    with project.start("invoke", "greet", '{"name": "x"}', "--wait") as waiting:
        waiting.wait_for("No server serves its queue")
        with project.start("start-server") as server:
            server.wait_until_ready()
            assert waiting.end() == 0
            assert waiting.out == '"Hello, x!"\n'


def test_a_time_limit_needs_a_wait(project: Project) -> None:
    done = project.run("invoke", "greet", '{"name": "x"}', "--timeout", "5")
    assert done.code == 2
    assert "--timeout goes with --wait" in done.err
