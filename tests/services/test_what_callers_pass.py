"""What callers pass is checked at the door: a sentence of ours, and never an error of a library."""

from __future__ import annotations

import asyncio
import math
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conductor_cli import AsyncConductor, Conductor, Duplicate, Orchestrator, errors, task
from tests.services.test_errors_of_every_method import CALLS, TALKS_TO_NOBODY, methods

if TYPE_CHECKING:
    from collections.abc import Iterator

HALF: Final = "a\ud800"
NUL: Final = "a\0b"
LATE: Final = datetime.max.replace(tzinfo=timezone(timedelta(hours=-12)))


@task
def add(a: int = 1, b: int = 1) -> int:
    return a + b


@task
async def add_async(a: int = 1) -> int:
    return a


@task(invocable=False)
def internal() -> None: ...


def plain(a: int = 1) -> int:
    return a


@pytest.fixture
def conductor(database_url: str) -> Iterator[Conductor]:
    with Conductor.create(database_url) as made:
        yield made


REFUSED: Final[list[tuple[str, Callable[[Any], Any], type[Exception], str]]] = [
    ("a function", lambda c: c.invoke(plain), TypeError, "a function without @task"),
    ("a method of time", lambda c: c.invoke(time.sleep), TypeError, "a function without @task"),
    ("a call", lambda c: c.invoke(add(1)), TypeError, "not into a call"),
    ("an awaitable call", lambda c: c.invoke(add_async(1)), TypeError, "a call of one"),
    ("a class", lambda c: c.invoke(dict), TypeError, "is no task"),
    ("None", lambda c: c.invoke(None), TypeError, "is no task"),
    ("functions", lambda c: c.invoke_many(plain, [{}]), TypeError, "without @task"),
    ("a name", lambda c: c.invoke("no name!"), ValueError, "the task name"),
    ("half a name", lambda c: c.invoke(HALF), ValueError, "the task name"),
    ("a payload that is no object", lambda c: c.invoke(add, 5), errors.PayloadError, "add"),
    ("an argument", lambda c: c.invoke(add, a=5), TypeError, "no option 'a'"),
    ("text for a number", lambda c: c.invoke(add, {"a": "1"}), errors.PayloadError, "'add'"),
    ("half a text", lambda c: c.invoke("x", {"a": HALF}, queue="q"), errors.PayloadError, "JSON"),
    ("NUL", lambda c: c.invoke("x", {"a": NUL}, queue="q"), errors.PayloadError, "NUL"),
    ("an object", lambda c: c.invoke(add, {"a": object()}), errors.PayloadError, "object"),
    ("delay as text", lambda c: c.invoke(add, delay="1h"), ValueError, "delay"),
    ("delay nan", lambda c: c.invoke(add, delay=math.nan), ValueError, "delay"),
    ("delay huge", lambda c: c.invoke(add, delay=10**5000), ValueError, "delay"),
    ("delay below 0", lambda c: c.invoke(add, delay=-1), ValueError, "delay"),
    ("run_at as text", lambda c: c.invoke(add, run_at="2026-01-01"), TypeError, "run_at"),
    ("run_at naive", lambda c: c.invoke(add, run_at=datetime(2026, 1, 1)), ValueError, "time zone"),
    ("run_at too late", lambda c: c.invoke(add, run_at=LATE), ValueError, "9999"),
    ("timeout as text", lambda c: c.invoke(add, timeout="5"), ValueError, "timeout"),
    ("timeout 0", lambda c: c.invoke(add, timeout=0), ValueError, "timeout"),
    ("priority", lambda c: c.invoke(add, priority=10**30), ValueError, "priority"),
    ("priority of many digits", lambda c: c.invoke(add, priority=10**5000), ValueError, "<int>"),
    ("a queue", lambda c: c.invoke(add, queue="no name!"), ValueError, "the queue name"),
    ("a key of half a character", lambda c: c.invoke(add, dedupe_key=HALF), ValueError, "UTF-8"),
    ("a key with NUL", lambda c: c.invoke(add, dedupe_key=NUL), ValueError, "NUL"),
    ("a key that is empty", lambda c: c.invoke(add, dedupe_key=""), ValueError, "dedupe_key"),
    ("a key that is a number", lambda c: c.invoke(add, dedupe_key=7), TypeError, "dedupe_key=7"),
    ("on_duplicate", lambda c: c.invoke(add, on_duplicate="x"), ValueError, "on_duplicate='x'"),
    ("supersede", lambda c: c.invoke(add, on_duplicate="supersede"), ValueError, "this version"),
    ("metadata", lambda c: c.invoke(add, metadata=[1]), TypeError, r"metadata=\[1\]"),
    ("in metadata", lambda c: c.invoke(add, metadata={"a": NUL}), errors.PayloadError, "metadata"),
    ("an id", lambda c: c.invoke(add, id="x"), ValueError, "id='x'"),
    ("an id that is a number", lambda c: c.invoke(add, id=5), TypeError, "id=5"),
    ("an option", lambda c: c.invoke(add, prio=3), TypeError, "Did you mean 'priority'"),
    ("group", lambda c: c.invoke(add, group="g"), TypeError, "'group' is not in this version"),
    ("throttle", lambda c: c.invoke(add, throttle=3), TypeError, "'throttle' is not in this"),
    ("deadline", lambda c: c.invoke(add.options(deadline=3)), TypeError, "not in this version"),
    ("run_at and delay", lambda c: c.invoke(add, delay=1, run_at=datetime.now(UTC)),
     ValueError, "both"),
    ("not invocable", lambda c: c.invoke(internal), errors.ConductorError, "not invocable"),
    ("id for many", lambda c: c.invoke_many(add, [{}] * 2, id=uuid4()), TypeError, "be common"),
    ("key for many", lambda c: c.invoke_many(add, [{}], dedupe_key="k"), TypeError, "be common"),
    (
        "key for many by options",
        lambda c: c.invoke_many(add.options(dedupe_key="k"), [{}] * 2), TypeError, "be common",
    ),
    ("one for many", lambda c: c.invoke_many(add.bind(a=1), [{}]), TypeError, "an Invocation"),
    ("no payloads", lambda c: c.invoke_many(add, 5), TypeError, "payloads=5"),
    ("no payloads at all", lambda c: c.invoke_many(add, None), TypeError, "payloads=None"),
    ("one payload for many", lambda c: c.invoke_many(add, {"a": 1}), TypeError, "payloads="),
    ("text for many", lambda c: c.invoke_many(add, "abc"), TypeError, "payloads='abc'"),
    ("get", lambda c: c.get("x"), ValueError, "id='x'"),
    ("get None", lambda c: c.get(None), TypeError, "id=None"),
    ("cancel", lambda c: c.cancel("x"), ValueError, "id='x'"),
    ("reason", lambda c: c.cancel(uuid4(), HALF), ValueError, "reason"),
    ("reason NUL", lambda c: c.cancel(uuid4(), NUL), ValueError, "reason"),
    ("reason as a number", lambda c: c.cancel(uuid4(), 5), TypeError, "reason=5"),
    ("retry", lambda c: c.retry("x"), ValueError, "id='x'"),
    ("restart", lambda c: c.retry(uuid4(), "yes"), TypeError, "restart='yes'"),
    ("wait", lambda c: c.wait("nope"), ValueError, "id='nope'"),
    ("seconds for a task", lambda c: c.wait(uuid4(), 10), TypeError, "timeout=10"),
    ("a duration for a task", lambda c: c.wait(uuid4(), timedelta(1)), TypeError, "timeout="),
    ("a function for a task", lambda c: c.wait(uuid4(), plain), TypeError, "without @task"),
    ("wait timeout", lambda c: c.wait(uuid4(), timeout="5"), ValueError, "timeout"),
    ("watch", lambda c: c.watch("x"), ValueError, "id='x'"),
    ("state", lambda c: c.list(state="open"), ValueError, "state='open' is none of pending"),
    ("state as a number", lambda c: c.list(state=5), TypeError, "state=5"),
    ("limit", lambda c: c.list(limit=-1), ValueError, "limit=-1"),
    ("limit huge", lambda c: c.list(limit=10**30), ValueError, "limit="),
    ("limit as text", lambda c: c.list(limit="5"), TypeError, "limit='5'"),
    ("since", lambda c: c.list(since="yesterday"), TypeError, "since='yesterday'"),
    ("since naive", lambda c: c.list(since=datetime(2026, 1, 1)), ValueError, "time zone"),
    ("list task", lambda c: c.list(task=HALF), ValueError, "the task name"),
    ("list function", lambda c: c.list(task=plain), TypeError, "without @task"),
    ("list queue", lambda c: c.list(queue=NUL), ValueError, "the queue name"),
    ("emit", lambda c: c.emit("bad name!", {}), ValueError, "the event name"),
    ("emit half", lambda c: c.emit("e", HALF), errors.PayloadError, "event 'e'"),
    ("emit on", lambda c: c.emit("e", {}, connection=5), TypeError, "connection="),
    ("invoke on", lambda c: c.invoke(add, connection="x"), TypeError, "connection="),
    ("pause", lambda c: c.pause(""), ValueError, "the queue name"),
    ("resume", lambda c: c.resume(None), ValueError, "the queue name"),
    ("schedule", lambda c: c.schedule(add, "n", "61 * * * *"), errors.TaskDefinitionError, "61"),
    ("schedule half", lambda c: c.schedule(add, "n", HALF), ValueError, "expression"),
    ("schedule None", lambda c: c.schedule(add, "n", None), TypeError, "expression=None"),
    ("schedule name", lambda c: c.schedule(add, "x y", "* * * * *"), ValueError, "schedule name"),
    ("schedule function", lambda c: c.schedule(plain, "n", "* * * * *"), TypeError, "@task"),
    (
        "zone", lambda c: c.schedule(add, "n", "* * * * *", timezone="Mars"),
        errors.TaskDefinitionError, "Mars",
    ),
    ("zone None", lambda c: c.schedule(add, "n", "* * * * *", timezone=5), TypeError, "timezone=5"),
    (
        "missed", lambda c: c.schedule(add, "n", "* * * * *", missed="x"),
        errors.TaskDefinitionError, "missed='x'",
    ),
    ("unschedule", lambda c: c.unschedule(plain, "n"), TypeError, "without @task"),
    ("unschedule name", lambda c: c.unschedule(add, HALF), ValueError, "schedule name"),
    ("a worker", lambda c: c.create_worker("q", [plain]), TypeError, "without @task"),
    ("a worker's queue", lambda c: c.create_worker(HALF, [add]),
     errors.ConfigError, "the queue name"),
    ("a worker of no list", lambda c: c.create_worker("q", add), TypeError, "tasks="),
    ("a server", lambda c: Orchestrator.create(conductor=c, tasks=[plain]), TypeError, "@task"),
    ("a server of text", lambda c: Orchestrator.create(conductor=c, tasks=["add"]),
     TypeError, "'add'"),
    ("a server of none", lambda c: Orchestrator.create(conductor=5, tasks=[add]), TypeError, "5"),
    ("a file", lambda c: Conductor.create(Path("x")), errors.ConfigError, "url"),
    ("another database", lambda c: Conductor.create("mysql://x"), errors.ConfigError, "mysql"),
    ("embedded", lambda c: Conductor.create("embedded"), errors.ConfigError, "from_config"),
    ("nothing", lambda c: Conductor.create(), errors.ConfigError, "URL"),
    ("a pool that is none", lambda c: Conductor.create(pool=5), errors.ConfigError, "pool=5"),
    ("a small pool", lambda c: Conductor.create("postgresql:///x", pool_size=0),
     ValueError, "pool_size"),
    ("a limit", lambda c: Conductor.create("postgresql:///x", max_payload="1"),
     TypeError, "max_payload"),
    ("a zone", lambda c: Conductor.create("postgresql:///x", timezone="Mars"), ValueError, "Mars"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "kind", "says"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED]
)
def test_it_is_refused_with_a_sentence(
    conductor: Conductor, call: Callable[[Any], Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says) as caught:
        call(conductor)
    assert type(caught.value).__module__ in {"builtins", "conductor_cli.errors"}
    assert conductor.list() == []


def test_ids_are_taken_as_text(conductor: Conductor) -> None:
    id = conductor.invoke(add, id=str(uuid4()))
    assert isinstance(id, UUID)
    assert conductor.get(str(id)) == conductor.get(id)
    assert next(conductor.watch(str(id))).id == id
    assert conductor.cancel(str(id))
    with pytest.raises(errors.ExecutionCancelled):
        conductor.wait(str(id), timeout=5)
    assert conductor.retry(str(id))

    async def main() -> None:
        async with AsyncConductor(conductor) as aio:
            assert await aio.get(str(id)) == conductor.get(id)
            with pytest.raises(TimeoutError, match=r"is pending after 0\.01 s"):
                await aio.wait(str(id), timeout=0.01)
            with pytest.raises(TypeError, match="timeout=10"):
                await aio.wait(id, 10)  # type: ignore[call-overload]
            assert await aio.cancel(str(id))

    asyncio.run(main())


def test_who_waits_by_text_asks_no_more_often(
    conductor: Conductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = conductor.invoke(add)
    asked = 0
    retrying = conductor.database.retrying

    def counted(work: Any) -> Any:
        nonlocal asked
        asked += 1
        return retrying(work)

    monkeypatch.setattr(conductor.database, "retrying", counted)
    with pytest.raises(TimeoutError):
        conductor.wait(str(id), timeout=1.0)
    assert asked < 60


def test_an_id_of_another_task_is_no_ones_to_take(conductor: Conductor) -> None:
    id = conductor.invoke(add)
    assert conductor.invoke(add, {"a": 5}, id=id) == id
    with pytest.raises(Duplicate, match="another task has the id") as caught:
        conductor.invoke(add_async, id=id)
    assert caught.value.id == id
    with pytest.raises(Duplicate):
        conductor.invoke_many(add_async, [{}, add_async.bind().options(id=id), {}])
    assert [each.id for each in conductor.list()] == [id]


def test_in_invocations_ids_and_keys_are_each_ones_own(conductor: Conductor) -> None:
    id = uuid4()
    made = conductor.invoke_many(
        add,
        [
            add.bind(a=1).options(dedupe_key="k"),
            add.bind(a=2).options(dedupe_key="k", on_duplicate="replace"),
            add.bind(a=3).options(id=id),
        ],
    )
    assert made[0] == made[1]
    assert made[2] == id
    assert {each.payload["a"] for each in conductor.list()} == {2, 3}


def test_what_only_triggers_run_is_refused_by_name_too(conductor: Conductor) -> None:
    orchestrator = Orchestrator.create(conductor=conductor, tasks=[internal])
    orchestrator.drain()
    for options in ({}, {"queue": "default"}):
        with pytest.raises(errors.ConductorError, match="not invocable"):
            conductor.invoke("internal", **options)
    assert conductor.list() == []


NOT_YET: Final = [
    "expires", "deadline", "concurrency", "rate", "group_concurrency", "group_rate", "limits",
    "group_by", "fifo", "window", "batch", "dead_letter", "title", "isolated",
    "retry_on", "fail_on",
]  # fmt: skip


@pytest.mark.parametrize("option", NOT_YET)
def test_what_a_task_cannot_have_yet_is_refused(option: str) -> None:
    with pytest.raises(errors.TaskDefinitionError, match=f"'{option}' is not in this version"):
        task(**{option: 1})(lambda: None)  # type: ignore[call-overload]


class Rude:
    """Its text is an error."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__


RUBBISH = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**5000), st.floats(), st.text(max_size=20),
    st.sampled_from([HALF, NUL, "", " ", "x" * 20_000, "\ud800"]), st.binary(max_size=5),
    st.datetimes(), st.just(LATE), st.timedeltas(), st.decimals(), st.uuids(),
    st.sampled_from(
        [plain, time.sleep, add, add.bind(a=1), add.options(priority=1), Rude(), Rude, object(),
         [], {}, [{}], {"a": 1}, {1: 2}, (), {1}, Decimal("nan"), math.inf, Path("/"), lambda: 1]
    ),
)  # fmt: skip

MOST: Final = {"invoke": 2, "invoke_many": 2, "get": 1, "list": 0, "wait": 2, "watch": 1,
               "emit": 2, "cancel": 2, "retry": 2, "schedule": 4, "unschedule": 2, "pause": 1,
               "resume": 1}  # fmt: skip
NAMED: Final = {
    "invoke": ["queue", "id", "run_at", "delay", "priority", "dedupe_key", "on_duplicate", "group",
               "timeout", "metadata", "connection", "expires", "nonsense"],
    "invoke_many": ["queue", "id", "run_at", "delay", "priority", "on_duplicate", "metadata",
                    "connection"],
    "list": ["state", "task", "queue", "since", "limit"],
    "wait": ["timeout"],
    "schedule": ["timezone", "missed"],
    "emit": ["connection"],
}  # fmt: skip


def test_rubbish_is_given_to_every_method() -> None:
    assert set(MOST) == set(CALLS) - {"ensure_installed"}
    assert methods(Conductor) == set(CALLS) | TALKS_TO_NOBODY


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_rubbish_is_refused_with_a_sentence(conductor: Conductor, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(MOST)))
    count = data.draw(st.integers(min(1, MOST[name]), MOST[name]))
    args = [data.draw(RUBBISH) for _ in range(count)]
    if name in {"invoke", "invoke_many", "schedule"} and args and data.draw(st.booleans()):
        args[0] = add
    if name in {"wait", "cancel", "retry"} and data.draw(st.booleans()):
        args[0] = uuid4()
    keys = data.draw(
        st.lists(st.sampled_from(NAMED.get(name, ["nonsense"])), unique=True, max_size=3)
    )
    kwargs = {key: data.draw(RUBBISH) for key in keys}
    if name == "wait" and "timeout" not in kwargs:
        kwargs["timeout"] = 0.001
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = getattr(conductor, name)(*args, **kwargs)
            if name == "watch":
                next(found)
    except (errors.ConductorError, TypeError, ValueError, TimeoutError) as error:
        refused = error
    else:
        return
    assert type(refused).__module__ in {"builtins", "conductor_cli.errors"}
    assert type(refused) in {TypeError, ValueError, TimeoutError} or isinstance(
        refused, errors.ConductorError
    )
    text = str(refused)
    assert text
    assert len(text) < 2000
    assert "psycopg" not in text
    text.encode()
