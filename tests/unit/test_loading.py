"""Which tasks a configuration's modules bring, however they were defined and wherever they lie."""

from __future__ import annotations

import importlib
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from conductor_cli.errors import TaskDefinitionError
from conductor_cli.loading import load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conductor_cli.loading import Loaded


class Project:
    """A folder of modules whose names no other test has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, path: str, text: str = "") -> Path:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("from conductor_cli import cron, task\n" + textwrap.dedent(text))
        importlib.invalidate_caches()
        return file

    def load(self, *patterns: str) -> Loaded:
        return load(patterns, str(self.folder))

    def names(self, *patterns: str) -> set[str]:
        return {each.name for each in self.load(*patterns).tasks}

    def problem(self, *patterns: str) -> str:
        with pytest.raises(TaskDefinitionError) as caught:
            self.load(*patterns)
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield Project(tmp_path)
    for name in set(sys.modules) - before:
        del sys.modules[name]


def a_task(name: str) -> str:
    return f"@task\ndef {name}() -> None: ...\n"


# ── However they were defined ────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "code",
    [
        """
        for region in ("eu", "us"):
            @task(name=f"sync.{region}")
            def sync(): ...
        """,
        """
        def make(region):
            @task(name=f"sync.{region}")
            def sync(): ...
        make("eu"), make("us")
        """,
        """
        for region in ("eu", "us"):
            task(name=f"sync.{region}")(lambda: None)
        """,
        """
        class Jobs:
            @task(name="sync.eu")
            @staticmethod
            def eu(): ...
            @task(name="sync.us")
            def us(): ...
        del Jobs
        """,
        """
        @task(name="sync.eu")
        def sync(): ...
        @task(name="sync.us")
        def sync(): ...
        """,
        """
        from functools import partial
        def sync(region): ...
        [task(name=f"sync.{each}")(partial(sync, each)) for each in ("eu", "us")]
        """,
        """
        exec('''
        @task(name="sync.eu")
        def eu(): ...
        '''.replace("        ", ""))
        if True:
            try:
                raise ValueError
            except ValueError:
                @task(name="sync.us")
                def us(): ...
                del us
        """,
    ],
    ids=["loop", "factory", "lambda", "class", "name bound again", "partial", "exec, deleted"],
)
def test_no_name_in_the_module_has_to_lead_to_a_task(project: Project, code: str) -> None:
    project.write("defined_somehow.py", code)
    assert project.names("defined_somehow") == {"sync.eu", "sync.us"}


def test_a_task_that_another_modules_factory_makes_is_of_the_module_that_asked(
    project: Project,
) -> None:
    project.write("lib_of_factories.py", "def make(n):\n    task(name=n)(lambda: None)\n")
    project.write("asks_a_factory.py", "from lib_of_factories import make\nmake('made')\n")
    assert project.names("asks_a_factory") == {"made"}


def test_a_function_of_a_library_becomes_a_task_of_the_module_that_makes_it_one(
    project: Project,
) -> None:
    project.write("makes_a_task.py", "from shutil import rmtree\ntask(name='clean')(rmtree)\n")
    assert project.names("makes_a_task") == {"clean"}


def test_a_task_that_is_imported_into_another_served_module_is_there_once(
    project: Project,
) -> None:
    project.write("first_served.py", a_task("shared"))
    project.write("second_served.py", "from first_served import shared\n" + a_task("own"))
    loaded = project.load("second_served", "first_served")
    assert sorted(each.name for each in loaded.tasks) == ["own", "shared"]
    assert loaded.warnings == []


def test_a_module_that_was_executed_anew_has_its_new_tasks_alone(project: Project) -> None:
    file = project.write("reloaded_module.py", a_task("old") + a_task("kept"))
    (old,) = (each for each in project.load("reloaded_module").tasks if each.name == "kept")
    file.write_text(file.read_text().replace("old", "renewed"))
    importlib.invalidate_caches()
    importlib.reload(sys.modules["reloaded_module"])
    assert project.names("reloaded_module") == {"kept", "renewed"}
    (new,) = (each for each in project.load("reloaded_module").tasks if each.name == "kept")
    assert new is not old
    del sys.modules["reloaded_module"]
    assert project.names("reloaded_module") == {"kept", "renewed"}


def test_what_a_factory_made_for_a_module_goes_with_that_module(project: Project) -> None:
    project.write("lib_that_stays.py", "def make(n):\n    task(name=n)(lambda: None)\n")
    project.write("asks_and_is_reloaded.py", "import lib_that_stays as l\nl.make('one')\n")
    assert project.names("asks_and_is_reloaded", "lib_that_stays") == {"one"}
    importlib.reload(sys.modules["asks_and_is_reloaded"])
    assert project.names("asks_and_is_reloaded", "lib_that_stays") == {"one"}


# ── Two of one name ──────────────────────────────────────────────────────────────────────


def test_a_name_given_twice_in_one_module_is_an_error_that_names_both_places(
    project: Project,
) -> None:
    file = project.write(
        "twice_in_one.py",
        """
        @task(triggers=[cron("0 1 * * *")])
        def users_cleansing(): ...

        @task
        def users_cleansing(): ...
        """,
    )
    text = project.problem("twice_in_one")
    assert f"users_cleansing ({file}:3) and users_cleansing ({file}:6)" in text


def test_a_loop_that_gives_no_names_is_an_error_that_says_so(project: Project) -> None:
    project.write("loop_without_names.py", "for n in 'ab':\n    @task\n    def sync(): ...\n")
    text = project.problem("loop_without_names")
    assert "one place that was executed twice" in text
    assert "@task(name=...)" in text


def test_a_file_that_was_imported_under_two_names_is_told_as_that(project: Project) -> None:
    project.write("two_ways/jobs.py", a_task("once"))
    project.write("two_ways/__init__.py", "import sys, os; sys.path.append(__path__[0])")
    text = project.problem("two_ways.jobs", "two_ways", "jobs")
    assert "imported twice, as the module 'jobs' and as 'two_ways.jobs'" in text


# ── Where they lie ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_a_star_finds_folders_without_init(project: Project, outer: bool, inner: bool) -> None:
    name = f"folders_{outer}_{inner}"
    if outer:
        project.write(f"{name}/__init__.py")
    if inner:
        project.write(f"{name}/deep/__init__.py")
    project.write(f"{name}/mail.py", a_task("mail"))
    project.write(f"{name}/deep/more.py", a_task("more"))
    project.write(f"{name}/deep/er/most.py", a_task("most"))
    project.write(f"{name}/deep/er/__main__.py", "raise SystemExit('a program was run')")
    (project.folder / name / "static" / "images").mkdir(parents=True)
    assert project.names(f"{name}.*") == {"mail", "more", "most"}


def test_links_that_lead_in_a_circle_end_the_search(project: Project) -> None:
    project.write("in_a_circle/deep/jobs.py", a_task("one"))
    (project.folder / "in_a_circle" / "deep" / "again").symlink_to(project.folder / "in_a_circle")
    assert project.names("in_a_circle.*") == {"one"}


def test_a_module_that_python_takes_from_its_library_is_an_error_that_says_which(
    project: Project,
) -> None:
    file = project.write("queue.py", a_task("never_read"))
    text = project.problem("queue")
    assert text.startswith(
        f"The module 'queue' ([tasks] modules) is {sys.modules['queue'].__file__}"
    )
    assert f"of Python's standard library, not {file}, because it had been imported already" in text
    assert "'queue_tasks'" in text


@pytest.mark.parametrize("name", ["time", "json", "email.message"])
def test_a_module_of_the_library_is_never_what_is_meant(project: Project, name: str) -> None:
    assert "of Python's standard library" in project.problem(name)


def test_a_module_below_one_of_the_library_says_what_hides_it(project: Project) -> None:
    project.write("email/tasks.py", a_task("never_read"))
    text = project.problem("email.tasks")
    assert "No module named 'email.tasks'" in text
    assert f"of Python's standard library, not {project.folder / 'email'}" in text
    assert "'email_tasks'" in text


def test_a_folder_that_an_installed_package_hides_is_told(
    project: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    installed = Project(tmp_path_factory.mktemp("site-packages"))
    file = installed.write("hidden_jobs/__init__.py")
    sys.path.append(str(installed.folder))
    project.write("hidden_jobs/mail.py", a_task("never_read"))
    for pattern in ("hidden_jobs.*", "hidden_jobs", "hidden_jobs.mail"):
        text = project.problem(pattern)
        assert f"is {file} of another package, not {project.folder / 'hidden_jobs'}" in text
        assert "a folder without __init__.py only where nothing else has its name" in text
        del sys.modules["hidden_jobs"]


def test_an_installed_module_is_taken_where_the_project_has_none(
    project: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    installed = Project(tmp_path_factory.mktemp("site-packages"))
    installed.write("installed_jobs/mail.py", a_task("mail"))
    sys.path.append(str(installed.folder))
    assert project.names("installed_jobs.*") == {"mail"}


# ── What is said ─────────────────────────────────────────────────────────────────────────


def test_a_module_without_tasks_is_told_with_its_file(project: Project) -> None:
    file = project.write("without_tasks.py")
    project.write("with_tasks.py", a_task("one"))
    loaded = project.load("without_tasks", "with_tasks")
    assert [each.name for each in loaded.tasks] == ["one"]
    (warning,) = loaded.warnings
    assert warning == f"The module 'without_tasks' ([tasks] modules) defines no task: {file}."


def test_a_module_that_only_imports_tasks_says_whose_they_are(project: Project) -> None:
    project.write("defines_them.py", a_task("one"))
    project.write("only_imports.py", "from defines_them import one\n")
    (warning,) = project.load("only_imports").warnings
    assert warning.endswith("It only imports tasks that defines_them defines: name that module.")


def test_a_package_whose_modules_were_not_imported_is_told_how(project: Project) -> None:
    project.write("a_package/__init__.py")
    project.write("a_package/mail.py", a_task("mail"))
    project.write("a_folder/mail.py", a_task("other"))
    package, folder = project.load("a_package", "a_folder").warnings
    assert package.endswith('"a_package.*" imports all modules of the package.')
    assert f"is a folder without __init__.py, {project.folder / 'a_folder'}" in folder
    assert '"a_folder.*" imports' in folder


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("my_tassks", "my_tasks"),
        ("my_package.maill", "my_package.mail"),
        ("my_package.deep.moore", "my_package.deep.more"),
    ],
)
def test_a_misspelt_module_is_answered_with_the_nearest(
    project: Project, named: str, meant: str
) -> None:
    project.write("my_tasks.py")
    project.write("my_package/mail.py")
    project.write("my_package/deep/more.py")
    assert f"Did you mean {meant!r}?" in project.problem(named)


def test_a_module_named_as_a_file_is_told_without_its_ending(project: Project) -> None:
    project.write("named_as_file.py", a_task("one"))
    assert "named without its ending: 'named_as_file'" in project.problem("named_as_file.py")


def test_modules_that_import_each_other_are_told_what_to_do(project: Project) -> None:
    project.write("circle_a.py", "from circle_b import b\n" + a_task("a"))
    file = project.write("circle_b.py", "from circle_a import a\n" + a_task("b"))
    text = project.problem("circle_a")
    assert f"at {file}:2." in text
    assert "Two modules import each other" in text


def test_an_import_that_fails_in_a_library_names_the_programs_own_line_first(
    project: Project,
) -> None:
    file = project.write(
        "wrong_mail/tasks.py",
        """
        import json
        settings = json.loads("{not json")
        """,
    )
    with pytest.raises(TaskDefinitionError) as caught:
        project.load("wrong_mail.tasks")
    assert f"at {file}:4 (raised in " in str(caught.value)
    assert "decoder.py:" in str(caught.value)
