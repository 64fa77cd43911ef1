"""``@task``, its options and triggers, and what stands for an invocation."""

import functools
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from conductor_cli import registry
from conductor_cli.context import AsyncContext, Context
from conductor_cli.errors import PayloadError, TaskDefinitionError
from conductor_cli.registry import Cron, Invocation, Task, cron, task
from conductor_cli.timing import Backoff
from tests.support.names import named


def greet(name: str, times: int = 1) -> str:
    """Say hello."""
    return f"Hello, {name}!" * times


def refused(function: Callable[..., Any] = greet, **options: Any) -> str:
    with pytest.raises(TaskDefinitionError) as caught:
        task(**options)(function)
    return str(caught.value)


# ---------------------------------------------------------------- making tasks


def test_a_bare_decorator_takes_everything_from_the_function() -> None:
    made = task(greet)
    assert isinstance(made, Task)
    assert (made.name, made.queue, made.module) == ("greet", "default", __name__)
    assert (made.__name__, made.__doc__, made.__wrapped__) == ("greet", "Say hello.", greet)
    assert (made.is_async, made.triggers) == (False, ())
    assert made.place.startswith(f"greet ({__file__}:")
    assert repr(made) == "<Task 'greet' in queue 'default'>"


def test_a_task_is_called_like_its_function() -> None:
    made = task(name="x", max_attempts=1)(greet)
    assert made("Ada") == made(name="Ada", times=1) == "Hello, Ada!"
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        made()  # type: ignore[call-arg]


def test_an_async_function_is_a_task_too() -> None:
    @task
    async def fetch(ctx: AsyncContext, url: str) -> bytes:
        return b""

    assert fetch.is_async
    assert fetch.binder.parameters == ["url"]
    coroutine = fetch(None, "x")  # type: ignore[arg-type]
    with pytest.raises(StopIteration):
        coroutine.send(None)


def test_methods_partials_and_callable_objects_can_be_tasks() -> None:
    class Greeter:
        def __call__(self, name: str) -> str:
            return f"called {name}"

        def method(self, name: str) -> str:
            return f"method {name}"

        @staticmethod
        def static(name: str) -> str:
            return f"static {name}"

    assert task(Greeter().method)("a") == "method a"
    assert task(Greeter.static)("a") == "static a"
    assert task(staticmethod(greet))("a") == "Hello, a!"
    called = task(name="called")(Greeter())
    assert (called("a"), called.binder.parameters) == ("called a", ["name"])
    again = task(name="again")(functools.partial(greet, times=2))
    assert (again("a"), again.module) == ("Hello, a!Hello, a!", __name__)
    assert again.binder.bind('{"name": "a"}') == ([], {"name": "a"})


def test_a_partial_of_an_async_function_is_async() -> None:
    async def fetch(url: str, times: int) -> None: ...

    assert task(functools.partial(fetch, times=2)).is_async


def test_the_place_of_a_wrapped_function_is_its_own() -> None:
    @functools.wraps(greet)
    def wrapper(*args: Any, **kwargs: Any) -> Any: ...

    assert f":{greet.__code__.co_firstlineno})" in task(wrapper).place


@pytest.mark.parametrize("thing", [int, "report", 5, classmethod(greet), task(greet)])
def test_what_is_no_function_is_refused(thing: Any) -> None:
    with pytest.raises(TaskDefinitionError, match=r"@task is for functions.*options go by keyword"):
        task(thing)


def test_a_builtin_without_a_signature_is_refused() -> None:
    with pytest.raises(TaskDefinitionError, match="max: its signature cannot be read"):
        task(max)


def test_generators_and_methods_without_an_object_are_refused() -> None:
    def rows() -> Any:
        yield 1

    async def pages() -> Any:
        yield 1

    class Report:
        def build(self, kind: str) -> None: ...

    assert "rows" in refused(rows)
    assert "a task returns its result and cannot yield" in refused(pages)
    assert "'self' cannot come from a payload" in refused(Report.build)


def test_the_context_must_be_of_the_functions_kind() -> None:
    async def fetch(ctx: Context) -> None: ...
    def plain(ctx: AsyncContext) -> None: ...

    assert "'ctx' is annotated Context, but an async def takes AsyncContext" in refused(fetch)
    assert "'ctx' is annotated AsyncContext, but a plain function takes Context" in refused(plain)


def test_a_lambda_needs_a_name() -> None:
    assert "the task name '<lambda>' is not 1 to 200" in refused(lambda: None)
    assert task(name="nothing")(lambda: None).name == "nothing"


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    "options",
    [
        {"name": "a.B-c_d:1", "queue": "x" * 200},
        {"max_attempts": 1, "max_crashes": 0},
        {"priority": -32767},
        {"priority": 32767},
        {"timeout": 0.1},
        {"timeout": timedelta(hours=1)},
        {"retry": [0, 1.5, timedelta(minutes=1)]},
        {"retry": (1,)},
        {"retry": Backoff(1)},
        {"retry": lambda failures, error: None},
        {"retain_completed": 0, "retain_failed": False},
        {"retain_completed": True, "retain_failed": math.inf},
        {"retain_completed": timedelta(days=1)},
        {"invocable": False},
        {"triggers": (cron("@daily", payload={"name": "x"}),)},
    ],
    ids=named,
)
def test_these_options_are_accepted(options: dict[str, Any]) -> None:
    made = task(**options)(greet)
    for name, value in options.items():
        assert getattr(made.settings, name) == value


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"name": "ä"}, "the task name 'ä' is not 1 to 200 of the characters"),
        ({"name": "a b"}, "the task name 'a b'"),
        ({"name": "x" * 201}, "the task name 'xxx"),
        ({"name": "a\n"}, "the task name 'a\\n'"),
        ({"queue": ""}, "the queue name '' is not"),
        ({"queue": None}, "the queue name None is not"),
        ({"max_attempts": 0}, "max_attempts=0 is not a whole number from 1"),
        ({"max_attempts": 2.0}, "max_attempts=2.0"),
        ({"max_attempts": True}, "max_attempts=True"),
        ({"max_attempts": 2**31}, "max_attempts=2147483648 is not a whole number"),
        ({"max_crashes": -1}, "max_crashes=-1 is not a whole number from 0"),
        ({"priority": 32768}, "priority=32768 is not a whole number from -32767 to 32767"),
        ({"priority": -32768}, "priority=-32768"),
        ({"priority": "high"}, "priority='high'"),
        ({"timeout": 0}, "timeout=0 must be more than zero seconds"),
        ({"timeout": -1}, "timeout must be seconds"),
        ({"timeout": "5m"}, "timeout must be seconds or a timedelta"),
        ({"timeout": math.inf}, "timeout must be seconds"),
        ({"timeout": math.nan}, "timeout must be seconds"),
        ({"timeout": 1e12}, "timeout=1000000000000.0 is more than a century"),
        ({"retry": []}, "retry must be a list of seconds that is not empty"),
        ({"retry": 5}, "retry must be a list"),
        ({"retry": "15"}, "retry must be a list"),
        ({"retry": [1, -1]}, "retry must be seconds"),
        ({"retry": [1, None]}, "retry must be seconds"),
        ({"retain_completed": -1}, "retain_completed must be seconds"),
        ({"retain_failed": "forever"}, "retain_failed must be seconds"),
        ({"retain_failed": -math.inf}, "retain_failed must be seconds"),
        ({"invocable": "no"}, "invocable='no' is neither True nor False"),
        ({"triggers": cron("@daily")}, "is not a list"),
        ({"triggers": ["@daily"]}, "triggers holds '@daily', which is made by neither"),
        ({"triggers": [cron("@daily")] * 2}, "two triggers are named 'daily'"),
    ],
    ids=named,
)
def test_a_wrong_option_is_refused_with_its_place(options: dict[str, Any], problem: str) -> None:
    options = {"name": "greet", **options}
    if isinstance(options.get("triggers"), list):
        options["triggers"] = [
            cron(each.expression, name="daily", payload={"name": "x"})
            if isinstance(each, Cron)
            else each
            for each in options["triggers"]
        ]
    text = refused(greet, **options)
    assert problem in text
    assert text.startswith(f"Task {options['name']!r}, greet ({__file__}:")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_attempt", " Did you mean 'max_attempts'?"),
        ("rety", " Did you mean 'retry'?"),
        ("que", " Did you mean 'queue'?"),
        ("zzzzzz", ""),
    ],
)
def test_an_unknown_option_names_the_nearest(name: str, hint: str) -> None:
    text = refused(greet, **{name: 1})
    assert text.startswith(f"greet ({__file__}:")
    assert text.endswith(f"@task has no option {name!r}.{hint}")


# ---------------------------------------------------------------- triggers


def test_a_trigger_without_a_name_is_called_by_its_expression() -> None:
    assert cron("0 6 * * MON-FRI").name == "0_6_x_x_MON-FRI"
    assert cron("@daily").name == "_daily"
    assert cron("*/5 * * * *").name == "x_5_x_x_x_x"
    assert cron("0 6 * * *", name="morning").name == "morning"


def test_a_trigger_is_checked_where_it_is_written() -> None:
    for expression in ("61 * * * *", "nonsense", "@dayly", "0 0 30 2 *", ""):
        with pytest.raises(TaskDefinitionError, match="cron"):
            cron(expression)
    with pytest.raises(TaskDefinitionError, match="Europe/Berlin"):
        cron("@daily", timezone="Europe/Berlim")
    with pytest.raises(TaskDefinitionError, match="missed='never' is none of"):
        cron("@daily", missed="never")


@pytest.mark.parametrize("name", ["", "a b", "ä"])
def test_a_bad_name_of_a_trigger_is_refused(name: str) -> None:
    text = refused(triggers=[cron("@daily", name=name, payload={"name": "x"})])
    assert f"the trigger name {name!r} is not" in text


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (None, "missing key 'name'"),
        ({"name": 5}, "Expected 'str', got 'int' - at '$.name'"),
        ({"name": "x", "nmae": 1}, "has the unknown key 'nmae'"),
        ({"name": "\0"}, "contains the character NUL"),
        ({"name": {1, object()}}, "cannot be stored as JSON"),
        ([], "Expected 'object', got 'array'"),
    ],
)
def test_a_trigger_whose_payload_does_not_fit_is_a_definition_error(
    payload: Any, problem: str
) -> None:
    text = refused(name="x", triggers=[cron("@daily", name="daily", payload=payload)])
    assert text.startswith(f"Task 'x', greet ({__file__}:")
    assert "trigger 'daily' cannot run it: " in text
    assert problem in text


def test_a_trigger_without_a_payload_sends_an_empty_object() -> None:
    assert registry.trigger_payload("t", cron("@daily").payload) == "{}"
    assert registry.trigger_payload("t", [0]) == "[0]"
    assert registry.trigger_payload("t", {}) == "{}"


# ---------------------------------------------------------------- invocations


def test_bind_takes_the_functions_arguments() -> None:
    made = task(greet)
    assert made.bind(name="x") == Invocation(made, {"name": "x"})
    assert made.bind("x", times=2).payload == {"name": "x", "times": 2}
    assert made.bind("x").overrides == {}


def test_bind_leaves_the_context_out() -> None:
    @task
    def build(ctx: Context, kind: str, day: int = 1) -> None: ...

    assert build.bind("daily", 2).payload == {"kind": "daily", "day": 2}


def test_bind_gives_a_whole_payload_as_it_is() -> None:
    @task
    def whole(payload: Any) -> None: ...

    assert whole.bind([1]).payload == [1]
    assert whole.bind(payload={"a": 1}).payload == {"a": 1}


def test_bind_refuses_what_is_too_much() -> None:
    made = task(greet)
    with pytest.raises(TypeError, match=r"greet\.bind\(\) takes 2 positional arguments, not 3"):
        made.bind("a", 1, 2)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"greet\.bind\(\) has two values for 'name'"):
        made.bind("a", name="b")  # type: ignore[call-overload]


def test_options_are_kept_and_the_later_ones_win() -> None:
    made = task(greet)
    before = made.options(priority=1, delay=2).bind(name="x")
    after = made.bind(name="x").options(priority=1).options(delay=2)
    assert before == after == Invocation(made, {"name": "x"}, {"priority": 1, "delay": 2})
    assert before.options(priority=9).overrides == {"priority": 9, "delay": 2}
    assert before.overrides["priority"] == 1


@pytest.mark.parametrize("make", [lambda t: t, lambda t: t.bind(name="x")])
def test_an_unknown_option_of_an_invocation_names_the_nearest(make: Any) -> None:
    with pytest.raises(TypeError, match=r"greet.*no option 'prio'\. Did you mean 'priority'\?"):
        make(task(greet)).options(prio=5)


def test_the_payload_of_an_invocation_is_checked_like_any_other() -> None:
    made = task(greet)
    with pytest.raises(PayloadError, match="unknown key 'nam'"):
        made.binder.check(made.name, '{"name": "x", "nam": 1}')
