"""`conductor doctor` as it is typed: findings in three forms, and exit codes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.support.command import Project, command, free_port

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def project(tmp_path: Path, database_url: str) -> Project:
    return Project(tmp_path, database_url)


def findings(project: Project, code: int, **given: Any) -> list[dict[str, str]]:
    done = project.run("doctor", "--json", **given)
    assert done.code == code, done
    found: list[dict[str, str]] = json.loads(done.out)
    assert all(set(each) == {"check", "level", "message", "advice"} for each in found)
    return found


def test_a_project_that_is_well(project: Project) -> None:
    found = findings(project, 0)
    assert {each["level"] for each in found} <= {"ok", "warning"}
    assert "10 tasks" not in str(found)
    assert any(each["check"] == "configuration" and "queues" in each["message"] for each in found)


def test_an_embedded_database_is_well_once_it_has_been_used(tmp_path: Path) -> None:
    project = Project(tmp_path, "embedded")
    first = {each["check"]: each for each in findings(project, 0)}
    assert first["schema"]["level"] == "warning"
    assert project.run("status").code == 0
    assert {each["level"] for each in findings(project, 0)} == {"ok"}


def test_into_a_pipe_it_prints_lines_of_fields(project: Project) -> None:
    done = project.run("doctor")
    head, *rows = done.out.splitlines()
    assert head.split("\t") == ["level", "check", "message", "advice"]
    assert {len(row.split("\t")) for row in rows} == {4}


def test_on_a_terminal_it_prints_a_table(project: Project) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command("doctor"), cwd=project.folder, env=project.environment(), stdout=theirs,
        stdin=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    assert "0 wrong" in text
    assert "At its latest version" in text
    assert "\t" not in text


def test_work_that_nobody_serves_is_exit_code_1(project: Project) -> None:
    assert project.run("invoke", "misspelt", "--queue", "default").code == 0
    (wrong,) = [each for each in findings(project, 1) if each["level"] == "error"]
    assert wrong["check"] == "unserved"
    assert "'misspelt'" in wrong["message"]


def test_a_bad_configuration_is_exit_code_2(project: Project) -> None:
    (project.folder / "conductor.toml").write_text('[worker]\nconcurency = 1\n[log]\nlevel = "x"\n')
    found = findings(project, 2)
    assert {each["check"] for each in found} == {"configuration"}
    assert "did you mean 'concurrency'" in found[0]["message"]
    assert len(found) == 2


def test_tasks_that_cannot_be_loaded_are_exit_code_2_and_the_rest_is_looked_at(
    project: Project,
) -> None:
    (project.folder / "work.py").write_text("import nothing_of_that_name\n")
    found = {each["check"]: each for each in findings(project, 2)}
    assert "nothing_of_that_name" in found["configuration"]["message"]
    assert found["schema"]["level"] == "ok"


def test_without_a_schema_it_is_exit_code_1(tmp_path: Path, empty_database_url: str) -> None:
    project = Project(tmp_path, empty_database_url)
    found = {each["check"]: each for each in findings(project, 1)}
    assert "conductor migrate" in found["schema"]["advice"]
    with psycopg.connect(empty_database_url) as conn:
        assert conn.execute("select to_regnamespace('conductor')").fetchone() == (None,)


def test_a_newer_schema_is_exit_code_3(project: Project) -> None:
    with psycopg.connect(project.url) as conn:
        conn.execute("insert into conductor.migrations values (9999, '9999_more', 'x', true)")
    found = {each["check"]: each for each in findings(project, 3)}
    assert "9999_more" in found["schema"]["message"]
    assert "server" in found


def test_an_unreachable_database_is_exit_code_5_and_never_shows_the_password(
    tmp_path: Path,
) -> None:
    project = Project(tmp_path, f"postgresql://me:s3cret@127.0.0.1:{free_port()}/db")
    done = project.run("doctor", "--json")
    assert done.code == 5
    (wrong,) = [each for each in json.loads(done.out) if each["level"] == "error"]
    assert wrong["check"] == "database"
    assert "s3cret" not in done.out + done.err
    assert done.seconds < 12
