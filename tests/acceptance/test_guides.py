"""Every block of the guides runs, in order, and what an author can name is in one of them."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest

import conductor_cli
from conductor_cli import Conductor, Orchestrator, Task
from conductor_cli.registry import InvokeOptions, TaskOptions
from tests.support.command import FOREIGN, command

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
GUIDES: Final = ("tasks", "invoking", "testing", "middleware", "durable")
TEXTS: Final = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in GUIDES}
BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NOT_FOR_AUTHORS: Final = {  # parts of a server, and what is met elsewhere
    "Config", "ConfigError", "ExecutionError", "JobCoordinator", "JobScheduler", "JobWorker",
    "OrchestratorInfo", "ShutdownTimeout", "TaskDefinitionError", "WorkerConfig", "__version__",
    "State", "Invocation", "Task",
}  # fmt: skip


@pytest.fixture
def conductor(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Conductor]:
    """A client; code that asks for one by the configuration gets the same database."""
    monkeypatch.setenv("CONDUCTOR_DATABASE_URL", database_url)
    (tmp_path / "conductor.toml").write_text('[tasks]\nmodules = ["guide_tasks"]\n')
    (tmp_path / "guide_tasks.py").write_text(
        "from conductor_cli import task\n@task\ndef greet(name: str) -> str:\n"
        "    return f'Hello, {name}!'\n"
    )
    monkeypatch.chdir(tmp_path)
    with Conductor.create(database_url) as made:
        yield made


def blocks(name: str, *kinds: str) -> list[tuple[str, str]]:
    return [found for found in BLOCK.findall(TEXTS[name]) if found[0] in kinds]


def run(name: str, monkeypatch: pytest.MonkeyPatch, conductor: Conductor, *, serves: bool) -> Any:
    module = types.ModuleType(f"guide_{name}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    server: Orchestrator | None = None
    try:
        for number, (_, code) in enumerate(blocks(name, "python"), 1):
            exec(compile(code, f"{name}.md, block {number}", "exec"), vars(module))
            tasks = [each for each in vars(module).values() if isinstance(each, Task)]
            if serves and tasks and server is None:
                server = Orchestrator.create(conductor=conductor, tasks=tasks)
                server.start(signals=False)
    finally:
        if server is not None:
            server.stop()
    return module


def test_writing_tasks(conductor: Conductor, monkeypatch: pytest.MonkeyPatch) -> None:
    module = run("tasks", monkeypatch, conductor, serves=False)
    tasks = [each for each in vars(module).values() if isinstance(each, Task)]
    server = Orchestrator.create(conductor=conductor, tasks=tasks)
    place = conductor.invoke(module.place, {
        "order": "01890a5d-ac96-774b-bcce-b302099a8057", "items": [{"sku": "x", "price": "1.50"}],
    })  # fmt: skip
    states = {
        200: conductor.invoke(module.fetch, {"url": "u"}),
        404: conductor.invoke(module.fetch, {"url": "u", "status": 404}),
        410: conductor.invoke(module.fetch, {"url": "u", "status": 410}),
        429: conductor.invoke(module.fetch, {"url": "u", "status": 429}),
    }
    others = [
        conductor.invoke(module.import_rows, {"count": 3}),
        conductor.invoke(module.poll, {"url": "u"}),
        conductor.invoke(module.build_report, {"kind": "x"}),
    ]
    server.drain(timeout=30)

    assert conductor.wait(place, module.place) == module.Decimal("1.50")
    assert {code: found(conductor, id) for code, id in states.items()} == {
        200: "completed", 404: "failed", 410: "cancelled", 429: "pending",
    }  # fmt: skip
    assert [found(conductor, id) for id in others] == ["completed"] * 3


def found(conductor: Conductor, id: Any) -> str:
    execution = conductor.get(id)
    assert execution is not None
    return execution.state.value


def test_invoking(conductor: Conductor, monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    run("invoking", monkeypatch, conductor, serves=True).conductor.close()
    with psycopg.connect(database_url, autocommit=True) as conn:
        for _, statements in blocks("invoking", "sql"):
            for statement in filter(str.strip, statements.split(";\n")):
                assert conn.execute(statement.encode()).fetchall()


def test_testing(conductor: Conductor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = run("testing", monkeypatch, conductor, serves=False)
    module.orchestrator.stop()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    kept["CONDUCTOR_DATABASE_URL"] = os.environ["CONDUCTOR_DATABASE_URL"]
    for _, lines in blocks("testing", "sh"):
        for line in lines.splitlines():
            done = command_line(line, tmp_path, kept)
            assert done.returncode == 0, done.stderr


def command_line(line: str, folder: Path, environment: dict[str, str]) -> Any:
    import shlex
    import subprocess

    words = shlex.split(line)
    assert words[0] == "conductor"
    return subprocess.run(
        command(*words[1:]), cwd=folder, env=environment, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip


def test_all_that_an_author_can_name_is_in_a_guide() -> None:
    text = "\n".join(TEXTS.values())
    names = {
        *(set(conductor_cli.__all__) - NOT_FOR_AUTHORS),
        *(each.name for each in dataclasses.fields(TaskOptions)),
        *(each.name for each in dataclasses.fields(InvokeOptions)),
    }
    assert {each for each in names if not re.search(rf"\b{re.escape(each)}\b", text)} == set()
