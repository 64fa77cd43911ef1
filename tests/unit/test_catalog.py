"""Sets of tasks: loading the modules that hold them, and what the database is told of them."""

import importlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conductor_cli import catalog
from conductor_cli.catalog import TaskSet, WorkerSpec
from conductor_cli.errors import ConfigError, TaskDefinitionError, UnknownTask
from conductor_cli.loading import load_modules
from conductor_cli.registry import Task, cron, task
from conductor_cli.timing import Backoff

COUNTER = itertools.count()
Write = Callable[..., str]


def function(**options: Any) -> Task[..., Any]:
    def work() -> None: ...

    return task(**options)(work)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes modules of a package with a new name; returns that name. Leaves no trace."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def written(**modules: str) -> str:
        package = f"tasks_for_test_{next(COUNTER)}"
        for dotted, text in {"__init__": "", **modules}.items():
            file = tmp_path / package / f"{dotted.replace('__dot__', '/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.parent != tmp_path / package:
                (file.parent / "__init__.py").touch()
            file.write_text(text)
        importlib.invalidate_caches()
        return package

    yield written
    for name in set(sys.modules) - before:
        del sys.modules[name]


def a_task(name: str) -> str:
    return f"from conductor_cli import task\n@task\ndef {name}() -> None: ...\n"


def names(tasks: TaskSet) -> set[str]:
    return {each.name for each in tasks}


def import_problem(pattern: str, folder: Path) -> str:
    with pytest.raises(TaskDefinitionError) as caught:
        load_modules([pattern], str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- sets


def test_two_tasks_of_one_name_are_an_error_that_names_both_places() -> None:
    first, second = function(name="same"), function(name="same")
    with pytest.raises(TaskDefinitionError) as caught:
        TaskSet([first, second])
    assert str(caught.value).count(f"({__file__}:") == 2
    assert "Two tasks are named 'same': " in str(caught.value)


def test_the_same_task_may_be_added_twice() -> None:
    once = function(name="once")
    assert list(TaskSet([once, once])) == [once]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    tasks = TaskSet([function(name="report.build"), function(name="greet")])
    assert tasks.named("greet").name == "greet"
    assert tasks.get("greeet") is None
    with pytest.raises(UnknownTask, match=r"Did you mean 'report\.build'\?") as caught:
        tasks.named("report.bild")
    assert caught.value.nearest == ("report.build",)


def test_tasks_are_chosen_by_queue() -> None:
    tasks = TaskSet([function(name="a", queue="x"), function(name="b", queue="y")])
    assert (len(tasks), tasks.queues) == (2, ["x", "y"])
    assert names(tasks.in_queues(["y", "z"])) == {"b"}


# ---------------------------------------------------------------- loading


def test_a_module_brings_the_tasks_defined_in_it_and_below(write: Write, tmp_path: Path) -> None:
    name = write(
        __init__="from . import inner\n" + a_task("outer"),
        inner=a_task("inner"),
        unasked=a_task("unasked"),
    )
    assert names(load_modules([name], str(tmp_path))) == {"outer", "inner"}
    assert names(load_modules([f"{name}.inner"], str(tmp_path))) == {"inner"}


def test_a_task_that_is_only_imported_is_not_served(write: Write, tmp_path: Path) -> None:
    library = write(__init__=a_task("theirs"))
    name = write(__init__=f"from {library} import theirs\n" + a_task("ours"))
    assert names(load_modules([name], str(tmp_path))) == {"ours"}
    assert names(load_modules([name, library], str(tmp_path))) == {"ours", "theirs"}


def test_a_name_that_only_begins_alike_is_not_below(write: Write, tmp_path: Path) -> None:
    name = write(a=a_task("one"), ab=a_task("other"))
    load_modules([f"{name}.ab"], str(tmp_path))
    assert names(load_modules([f"{name}.a"], str(tmp_path))) == {"one"}


def test_a_star_imports_all_modules_of_a_package_but_no_program(
    write: Write, tmp_path: Path
) -> None:
    name = write(
        a=a_task("a"),
        b__dot__c=a_task("c"),
        b__dot__d__dot__e=a_task("e"),
        __main__="raise SystemExit('a program was run')",
        b__dot____main__="raise SystemExit('a program was run')",
    )
    assert names(load_modules([f"{name}.*"], str(tmp_path))) == {"a", "c", "e"}


def test_a_star_after_a_plain_module_is_the_module(write: Write, tmp_path: Path) -> None:
    name = write(a=a_task("alone"))
    assert names(load_modules([f"{name}.a.*"], str(tmp_path))) == {"alone"}


def test_the_folder_comes_first_on_the_path_and_only_once(write: Write, tmp_path: Path) -> None:
    name = write()
    load_modules([name], str(tmp_path))
    load_modules([name], str(tmp_path))
    assert sys.path[0] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


def test_two_modules_with_one_name_name_both_places(write: Write, tmp_path: Path) -> None:
    name = write(a=a_task("same"), b=a_task("same"))
    text = import_problem(f"{name}.*", tmp_path)
    assert f"same ({tmp_path / name / 'a.py'}:2) and same ({tmp_path / name / 'b.py'}:2)" in text


def test_a_missing_module_says_where_modules_are_looked_for(tmp_path: Path) -> None:
    text = import_problem("no_such_module.tasks", tmp_path)
    assert text == (
        "The module 'no_such_module.tasks' ([tasks] modules) does not import: "
        "ModuleNotFoundError: No module named 'no_such_module'. "
        "Modules are looked for beside the configuration file and on PYTHONPATH."
    )


def test_what_a_module_itself_does_not_find_has_a_line(write: Write, tmp_path: Path) -> None:
    name = write(__init__="import math\n\nimport no_such_library\n")
    text = import_problem(name, tmp_path)
    assert text.endswith(
        f"ModuleNotFoundError: No module named 'no_such_library' "
        f"at {tmp_path / name / '__init__.py'}:3."
    )


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise ValueError('one\\ntwo')", "ValueError: one two"),
        ("import sys; sys.exit()", "SystemExit:"),
        ("import sys; sys.exit('usage: tasks')", "SystemExit: usage: tasks"),
        ("raise BaseException('odd')", "BaseException: odd"),
        ("e = OSError('x'); e.add_note('a note'); raise e", "OSError: x"),
        ("from conductor_cli import cron; cron('61 * * * *')", "cron '61 * * * *': bad minute"),
        ("import json; json.loads('{')", "JSONDecodeError: Expecting property name"),
    ],
)
def test_a_module_that_fails_is_told_in_one_line_with_its_place(
    write: Write, tmp_path: Path, code: str, problem: str
) -> None:
    name = write(broken=f"\n\n{code}\n")
    text = import_problem(f"{name}.broken", tmp_path)
    start = f"The module '{name}.broken' ([tasks] modules) does not import: "
    assert text.startswith(start + problem)
    expected = "decoder.py:" if "json" in code else f"{tmp_path / name / 'broken.py'}:3."
    assert expected in text


def test_a_syntax_error_is_told_with_its_line(write: Write, tmp_path: Path) -> None:
    name = write(broken="def f():\n    pass\nx = (1,\n")
    text = import_problem(f"{name}.broken", tmp_path)
    assert f"SyntaxError: '(' was never closed at {tmp_path / name / 'broken.py'}:3." in text


def test_a_bad_option_in_a_module_is_told_with_both_places(write: Write, tmp_path: Path) -> None:
    name = write(a="from conductor_cli import task\n@task(max_attempts=0)\ndef f() -> None: ...\n")
    text = import_problem(f"{name}.*", tmp_path)
    file = tmp_path / name / "a.py"
    assert f"does not import: Task 'f', f ({file}:2): max_attempts=0 is not" in text


def test_an_interrupt_while_importing_is_not_swallowed(write: Write, tmp_path: Path) -> None:
    name = write(__init__="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_modules([name], str(tmp_path))


# ---------------------------------------------------------------- what the database is told


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, 60.0),
        (True, 60.0),
        (False, 0.0),
        (0, 0.0),
        (5, 5.0),
        (timedelta(minutes=2), 120.0),
        (timedelta(0), 0.0),
        (math.inf, None),
    ],
)
def test_retention_is_the_tasks_or_the_default(given: Any, kept: float | None) -> None:
    assert catalog.retention(given, 60.0) == kept


def test_a_default_of_for_ever_is_kept_for_ever() -> None:
    assert catalog.retention(None, math.inf) is None
    assert catalog.retention(5, math.inf) == 5.0


def test_a_task_spec_holds_what_the_database_needs() -> None:
    tasks = [
        function(name="a", queue="here", priority=7, max_attempts=2, max_crashes=0),
        function(name="b", queue="there", retain_completed=0, retain_failed=math.inf),
    ]
    a, b = catalog.task_specs("here", tasks, completed=10.0, failed=math.inf)
    assert (a.queue, a.name, a.home) == ("here", "a", True)
    assert (a.priority, a.max_attempts, a.max_crashes) == (7, 2, 0)
    assert (a.retain_completed, a.retain_failed) == (10.0, None)
    assert (b.queue, b.name, b.home) == ("here", "b", False)
    assert (b.retain_completed, b.retain_failed) == (0.0, None)


@pytest.mark.parametrize(
    ("retry", "shown"),
    [
        (None, None),
        ([1, timedelta(minutes=1)], [1, 60.0]),
        (
            Backoff(timedelta(seconds=2), maximum=timedelta(hours=1)),
            {"first": 2.0, "factor": 2.0, "maximum": 3600.0, "jitter": 0.1},
        ),
        (math.floor, "floor"),
    ],
)
def test_options_are_shown_in_jsons_types(retry: Any, shown: Any) -> None:
    made = function(
        name="a", retry=retry, timeout=timedelta(minutes=1), retain_failed=math.inf,
        retain_completed=timedelta(hours=1),
    )  # fmt: skip
    options = catalog.shown_options(made)
    assert options["retry"] == shown
    assert options["timeout"] == 60.0
    assert (options["retain_completed"], options["retain_failed"]) == (3600.0, "forever")
    assert msgspec.json.decode(msgspec.json.encode(options)) == options


def test_a_schedule_spec_takes_the_zone_of_the_house_where_it_names_none() -> None:
    made = function(
        name="a",
        queue="q",
        triggers=[
            cron("@daily", name="one"),
            cron("0 6 * * *", timezone="Europe/Berlin", missed="all", payload={}),
        ],
    )
    one, other = catalog.schedule_specs([made, function(name="b")], "Asia/Tokyo")
    assert (one.task, one.name, one.queue, one.expression) == ("a", "one", "q", "@daily")
    assert (one.timezone, one.missed, one.payload) == ("Asia/Tokyo", "latest", "{}")
    assert (other.name, other.timezone, other.missed) == ("0_6_x_x_x", "Europe/Berlin", "all")


def test_a_worker_spec_is_checked() -> None:
    spec = WorkerSpec.create("q", [function(name="a")], {"concurrency": 2})
    assert (spec.queue, names(spec.tasks), spec.config.concurrency) == ("q", {"a"}, 2)
    with pytest.raises(ConfigError, match="the queue name 'a b' is not"):
        WorkerSpec.create("a b", [], {})
    with pytest.raises(ConfigError, match="concurrency = 0: expected an integer"):
        WorkerSpec.create("q", [], {"concurrency": 0})
    with pytest.raises(TaskDefinitionError, match="Two tasks are named 'a'"):
        WorkerSpec.create("q", [function(name="a"), function(name="a")], {})
