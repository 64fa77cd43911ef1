"""The command without a server: what it says, and how it says that something is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conductor_cli.version import __version__
from tests.support.command import Project, command, free_port

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """One without a database."""
    return Project(tmp_path, "")


# ── Help, usage, output ──────────────────────────────────────────────────────────────────


def test_help_names_every_command_and_imports_little_but_click() -> None:
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", *command("--help")[-2:]]
        if command()[0] == sys.executable
        else [sys.executable, "-X", "importtime", *command("--help")],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in (
        *("init", "start-server", "drain", "migrate", "invoke", "run", "tasks", "generate-task"),
        *("executions", "status", "doctor", "healthcheck"),
    ):
        assert f"\n  {name} " in shown.stdout
    heavy = ("psycopg", "msgspec", "rich", "starlette", "uvicorn", "structlog", "cronsim")
    imported = set(re.findall(r"\| +(\w+)", shown.stderr))
    assert not imported.intersection(heavy)


def test_without_a_command_it_shows_its_help(project: Project) -> None:
    done = project.run()
    assert (done.code, done.out) == (2, "")
    assert "\n  start-server " in done.err


def test_it_tells_its_version(project: Project) -> None:
    assert __version__ in project.run("--version").out


def test_a_misspelt_command_or_option_is_a_usage_error_in_one_line(project: Project) -> None:
    done = project.run("drian")
    assert done.code == 2
    assert done.err.startswith("Error: No such command 'drian'")
    assert "drain" in done.err
    assert done.err.count("\n") == 1
    assert "--queue" in project.run("drain", "--queu", "x").err


def test_shared_options_may_come_before_and_after_the_command(project: Project) -> None:
    (project.folder / "other.toml").write_text('[tasks]\nmodules = ["nowhere"]\n')
    for words in (("--config", "other.toml", "tasks"), ("tasks", "--config", "other.toml")):
        done = project.run(*words)
        assert done.code == 2
        assert "'nowhere'" in done.err
    done = project.run("--config", "other.toml", "tasks", "--config", "conductor.toml")
    assert done.code == 0


def test_all_mistakes_of_a_configuration_are_told_each_on_a_line(project: Project) -> None:
    (project.folder / "conductor.toml").write_text(
        '[worker]\nconcurrency = "ten"\n[sever]\nport = 1\n'
    )
    done = project.run("tasks")
    assert done.code == 2
    first, second = done.err.splitlines()
    assert re.match(r"Error: conductor.toml:2: worker.concurrency = 'ten': expected", first)
    assert "did you mean 'server'" in second


def test_no_database_is_an_error_that_says_how_to_get_one(project: Project) -> None:
    done = project.run("status")
    assert done.code == 2
    assert "CONDUCTOR_DATABASE_URL" in done.err
    assert "conductor init" in done.err


def test_a_reader_who_goes_away_is_no_error(project: Project) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        command("tasks"), cwd=project.folder, env=project.environment(),
        stdout=theirs, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_stdout_is_no_error(project: Project) -> None:
    line = " ".join(command("tasks"))
    done = subprocess.run(
        ["sh", "-c", f"{line} >&-"], cwd=project.folder, env=project.environment(),
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_traceback_comes_only_with_debug(project: Project) -> None:
    (project.folder / "work.py").write_text("import missing_thing\n")
    plain, debug = project.run("tasks"), project.run("tasks", "--debug")
    assert (plain.code, debug.code) == (2, 2)
    assert "Traceback" not in plain.err
    assert re.search(r"'work'.*No module named 'missing_thing'.*work.py:1", plain.err)
    assert "Traceback" in debug.err


def test_a_module_that_exits_is_an_error_of_the_configuration(project: Project) -> None:
    (project.folder / "work.py").write_text("import sys; sys.exit(0)\n")
    done = project.run("tasks")
    assert done.code == 2
    assert "SystemExit" in done.err


def test_a_module_without_tasks_is_told_and_what_it_prints_is_no_answer(project: Project) -> None:
    (project.folder / "empty.py").write_text("print('loading')\n")
    (project.folder / "conductor.toml").write_text('[tasks]\nmodules = ["empty", "work"]\n')
    done = project.run("tasks", "--json")
    assert "greet" in {each["name"] for each in done.json}
    printed, warning = done.err.splitlines()
    assert printed == "loading"
    assert warning.startswith("Warning: The module 'empty' ([tasks] modules) defines no task: ")
    assert warning.endswith("empty.py.")


# ── Databases that cannot be had ─────────────────────────────────────────────────────────


def test_an_unreachable_database_is_exit_code_5_within_ten_seconds(project: Project) -> None:
    project.url = f"postgresql://bob:s3cret@127.0.0.1:{free_port()}/app"
    done = project.run("status", "--debug")
    assert done.code == 5
    assert done.seconds < 10
    assert "cannot be reached" in done.err
    assert "Traceback" in done.err
    assert "s3cret" not in done.err


@pytest.mark.parametrize("words", [("status",), ("drain",), ("migrate",), ("start-server",)])
def test_refused_credentials_are_exit_code_5_at_once(
    project: Project, empty_database_url: str, words: tuple[str, ...]
) -> None:
    url = empty_database_url.replace("://postgres@", "://nobody-here:s3cret@")
    done = project.run(*words, "--database-url", url)
    assert done.code == 5
    assert done.seconds < 4
    assert "refused" in done.err
    assert "s3cret" not in done.err


def test_an_unreadable_url_is_an_error_of_the_configuration(project: Project) -> None:
    done = project.run("status", "--database-url", "postgresql://bob:s3%cret@host/db?color=red")
    assert done.code == 2
    assert "database.url" in done.err
    assert "s3%cret" not in done.err


def test_a_database_without_the_schema_asks_for_migrate(
    project: Project, empty_database_url: str
) -> None:
    project.url = empty_database_url
    done = project.run("executions")
    assert done.code == 1
    assert "conductor migrate" in done.err


# ── tasks ────────────────────────────────────────────────────────────────────────────────


def test_tasks_as_json_have_name_queue_triggers_and_options(project: Project) -> None:
    shown = {each["name"]: each for each in project.run("tasks", "--json").json}
    assert all(set(each) == {"name", "queue", "triggers", "options"} for each in shown.values())
    build = shown["build"]
    assert build["queue"] == "reports"
    assert build["triggers"] == [
        {
            "name": "daily", "expression": "0 6 * * *", "timezone": "Europe/Berlin",
            "missed": "latest", "payload": {"kind": "daily"},
        }
    ]  # fmt: skip
    assert build["options"]["timeout"] == 300
    assert build["options"]["retry"] == [15, 30]


def test_tasks_into_a_pipe_are_tab_separated_below_a_header(project: Project) -> None:
    header, *rows = project.run("tasks").out.splitlines()
    assert header.split("\t") == ["name", "queue", "triggers", "limits"]
    assert ["greet", "default", "", "3 attempts"] in [row.split("\t") for row in rows]


# ── run ──────────────────────────────────────────────────────────────────────────────────


def test_run_prints_the_result_without_any_database(project: Project) -> None:
    done = project.run("run", "greet", '{"name": "World"}')
    assert (done.code, done.out) == (0, '"Hello, World!"\n')


def test_run_takes_a_payload_from_a_file_and_from_stdin(project: Project) -> None:
    (project.folder / "payload.json").write_text('{"name": "File"}')
    assert "Hello, File!" in project.run("run", "greet", "@payload.json").out
    assert "Hello, Pipe!" in project.run("run", "greet", "-", stdin='{"name": "Pipe"}').out
    assert project.run("run", "echo", "[1, 2]").out == "[1,2]\n"


def test_run_of_a_failing_task_shows_its_traceback(project: Project) -> None:
    done = project.run("run", "fail")
    assert (done.code, done.out) == (1, "")
    assert "Error: The task failed: ValueError: broken" in done.err
    assert "work.py" in done.err
    assert "\x1b" not in done.err


def test_run_ends_a_task_that_exceeds_its_timeout(project: Project) -> None:
    done = project.run("run", "too_slow")
    assert done.code == 1
    assert "TaskTimeout" in done.err


def test_run_of_a_task_that_cancels_itself_is_exit_code_1(project: Project) -> None:
    done = project.run("run", "give_up")
    assert done.code == 1
    assert "no need" in done.err


def test_run_looks_for_the_database_when_the_task_does(project: Project, database_url: str) -> None:
    assert project.run("run", "ask").code == 1
    project.url = database_url
    assert project.run("run", "ask").out == "0\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gret", "{}"), "Did you mean 'greet'?"),
        (("greet", "{name: 1}"), r"not JSON.*at column 2"),
        (("greet", '{\n"name": }'), r"at line 2, column 9"),
        (("greet", "NaN"), "NaN"),
        (("greet", '{"name": 1}'), r"'\$\.name'"),
        (("greet", '{"nam": "x"}'), "missing key 'name'"),
        (("greet", '{"name": "x", "age": 1}'), "unknown key 'age'"),
        (("greet", "@nowhere.json"), "nowhere.json"),
    ],
)
def test_a_wrong_task_or_payload_is_exit_code_2(
    project: Project, words: tuple[str, str], said: str
) -> None:
    done = project.run("run", *words)
    assert done.code == 2
    assert re.search(said, done.err)
    assert done.err.count("\n") == 1


# ── init, generate-task ──────────────────────────────────────────────────────────────────


def test_init_writes_a_project_whose_tasks_run(tmp_path: Path) -> None:
    made = Project(tmp_path, "")
    assert made.run("init", "deep/new").code == 0
    inside = tmp_path / "deep" / "new"
    settings = tomllib.loads((inside / "conductor.toml").read_text())
    assert settings["database"]["url"] == "embedded"
    config = ("--config", str(inside / "conductor.toml"))
    assert made.run(*config, "run", "greet", '{"name": "World"}').json == "Hello, World!"
    triggers = {t["name"]: t["triggers"] for t in made.run(*config, "tasks", "--json").json}
    assert triggers["greet"] == []
    assert [t["expression"] for t in triggers["tell_time"]] == ["*/5 * * * * *"]


def test_init_never_overwrites(tmp_path: Path) -> None:
    made = Project(tmp_path, "")
    before = (tmp_path / "conductor.toml").read_text()
    done = made.run("init", "--json")
    assert (done.json["kept"], len(done.json["written"])) == (["conductor.toml"], 2)
    again = made.run("init")
    assert again.code == 1
    assert "left as it is" in again.err
    assert (tmp_path / "conductor.toml").read_text() == before


def test_init_beside_a_tasks_py_hides_nothing_and_says_where_the_samples_are(
    tmp_path: Path,
) -> None:
    made = Project(tmp_path, "")
    (tmp_path / "conductor.toml").unlink()
    (tmp_path / "work.py").rename(tmp_path / "tasks.py")
    done = made.run("init")
    assert done.code == 0
    assert "tasks.py exists; it is left as it is, and the samples are in sample_tasks/." in done.err
    assert 'modules = ["tasks", "sample_tasks.*"]' in done.out
    assert "invoke greet" not in done.out
    assert "fail_later" in {each["name"] for each in made.run("tasks", "--json").json}
    before = (tmp_path / "conductor.toml").read_text()
    (tmp_path / "conductor.toml").write_text(before.replace('"tasks"', '"sample_tasks.*"'))
    assert made.run("run", "greet", '{"name": "World"}').json == "Hello, World!"
    assert made.run("init").code == 1


def test_init_beside_a_configuration_names_no_task_that_nobody_serves(tmp_path: Path) -> None:
    made = Project(tmp_path, "")
    done = made.run("init")
    assert done.code == 0
    assert 'under [tasks], modules = ["work", "tasks.*"] does.' in done.out
    assert "invoke greet" not in done.out


def test_init_makes_way_for_any_file_that_has_the_packages_name(tmp_path: Path) -> None:
    made = Project(tmp_path, "")
    (tmp_path / "conductor.toml").unlink()
    for name in ("tasks", "sample_tasks"):
        (tmp_path / name).write_text("a note")
    assert made.run("init").code == 0
    assert (tmp_path / "sample_tasks1" / "sample.py").exists()
    assert (tmp_path / "tasks").read_text() == "a note"


def test_a_generated_task_is_not_named_as_a_module_of_the_library(project: Project) -> None:
    done = project.run("generate-task", "queue")
    assert done.code == 2
    assert "'queue_task'" in done.err
    assert not (project.folder / "queue.py").exists()


def test_init_into_a_file_is_refused(project: Project) -> None:
    assert project.run("init", "work.py").code == 2


def test_a_generated_task_is_served_at_once_where_a_pattern_covers_it(tmp_path: Path) -> None:
    made = Project(tmp_path, "")
    made.run("init", "new")
    config = ("--config", "new/conductor.toml")
    done = made.run(*config, "generate-task", "send_mail")
    assert done.code == 0
    assert "modules = [" not in done.out
    assert made.run(*config, "run", "send_mail").code == 0
    assert made.run(*config, "generate-task", "send_mail").code == 2


def test_a_generated_task_beside_a_module_is_to_be_added(project: Project) -> None:
    done = project.run("generate-task", "send_mail")
    assert done.code == 0
    assert 'modules = ["work", "send_mail"]' in done.out
    assert (project.folder / "send_mail.py").exists()


@pytest.mark.parametrize("name", ["send-mail", "1st", "class", "../x", "a.b", ""])
def test_a_generated_task_has_a_name_that_python_takes(project: Project, name: str) -> None:
    before = set(project.folder.rglob("*"))
    done = project.run("generate-task", name)
    assert done.code == 2
    assert done.err.startswith("Error: ")
    assert set(project.folder.rglob("*")) == before


# ── healthcheck, dry run ─────────────────────────────────────────────────────────────────


def test_healthcheck_without_a_server_is_exit_code_1_and_quick(project: Project) -> None:
    done = project.run("healthcheck", "--port", str(free_port()))
    assert done.code == 1
    assert "not ready" in done.err
    assert done.seconds < 2
    assert project.run("healthcheck").code == 2  # port = 0


def test_a_dry_run_shows_what_would_be_served_without_a_database(project: Project) -> None:
    project.url = f"postgresql://bob:s3cret@127.0.0.1:{free_port()}/app"
    done = project.run("start-server", "--dry-run", "--port", "9001", "--concurrency", "3")
    assert done.code == 0
    assert "http://127.0.0.1:9001" in done.out
    assert "default\t3\t" in done.out
    assert re.search(r"build\tdaily\t0 6 \* \* \*\tEurope/Berlin\t20\d\d-.*Z", done.out)
    assert "(user bob)" in done.out
    assert "s3cret" not in done.out + done.err


def test_a_dry_run_as_json_obeys_the_flags(project: Project) -> None:
    with (project.folder / "conductor.toml").open("a") as file:
        file.write("[worker.queues.reports]\nconcurrency = 2\n")
    flags = ("start-server", "--dry-run", "--json", "--database-url", "postgresql://h/d")
    queues = {q["queue"]: q["concurrency"] for q in project.run(*flags).json["queues"]}
    assert queues == {"default": 10, "reports": 2}
    only = project.run(*flags, "--queue", "reports", "--concurrency", "5").json["queues"]
    assert only == [{"queue": "reports", "concurrency": 5, "tasks": ["build"]}]
    assert project.run(*flags, "--without-jobs").json["queues"] == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--queue", "reprots"), "'reprots'"),
        (("--concurrency", "0"), "worker.concurrency"),
        (("--port", "70000"), "'--port': 70000"),
        (("--host", "0.0.0.0"), "server.token"),
    ],
)
def test_a_dry_run_refuses_what_a_start_would(
    project: Project, flags: tuple[str, ...], said: str
) -> None:
    url = ("--database-url", "postgresql://h/d")
    done = project.run("start-server", "--dry-run", *url, *flags)
    assert done.code == 2
    assert said in done.err


def test_json_has_no_noise_around_it(project: Project) -> None:
    json.loads(project.run("tasks", "--json").out)
