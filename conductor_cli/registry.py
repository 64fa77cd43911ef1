"""The author's side: ``@task``, its options, triggers, invocations."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    overload,
)

from conductor_cli import filters, payloads, timing
from conductor_cli import middleware as middleware_of
from conductor_cli.arguments import shown
from conductor_cli.context import AsyncContext, Context
from conductor_cli.defined import tasks as defined_tasks
from conductor_cli.errors import ConductorError, PayloadError, TaskDefinitionError
from conductor_cli.models import NAME_PATTERN
from conductor_cli.results import ResultType

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from uuid import UUID

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Seconds = float | timedelta
MOST: Final = 1_000_000_000  # that a count may be
LONGEST: Final = 3_155_760_000.0  # seconds that a duration may last: a century
_NAME: Final = re.compile(NAME_PATTERN)


@dataclass(frozen=True, slots=True)
class Cron:
    """A schedule on which a task runs; made by :func:`cron`."""

    expression: str
    name: str
    payload: object
    timezone: str | None
    missed: timing.Missed


def cron(
    expression: str,
    *,
    name: str | None = None,
    payload: object = None,
    timezone: str | None = None,
    missed: str = "latest",
) -> Cron:
    """Run the task at each tick of ``expression``: five fields, or six with seconds first.

    ``name`` tells several schedules of one task apart (default: the expression's text).
    ``timezone`` defaults to ``[scheduler] timezone``. ``missed``: what becomes of ticks that no
    server was there for: ``latest`` one late run, ``skip`` none, ``all`` each of them.
    Raises TaskDefinitionError.
    """
    try:
        policy = timing.Missed(missed)
    except ValueError:
        raise TaskDefinitionError(
            f'cron({expression!r}): missed={missed!r} is none of "latest", "skip", "all".'
        ) from None
    timing.Schedule.parse(expression, timezone or "UTC")
    if name is None:
        name = default_cron_name(expression)
    return Cron(expression, name, payload, timezone, policy)


def default_cron_name(expression: str) -> str:
    """A schedule's name when its author gave none: the expression in characters of a name."""
    return re.sub(r"[^A-Za-z0-9_.:-]+", "_", expression.strip().replace("*", "x")) or "cron"


@dataclass(frozen=True, slots=True)
class OnEvent:
    """An event that starts a task; made by :func:`on_event`."""

    event: str
    payload: object
    exact: str
    tests: str


def on_event(
    event: str, *, payload: object = None, where: Mapping[str, Any] | None = None
) -> OnEvent:
    """Run the task at each event of this name.

    ``payload``: the execution's; default the event's own, of which the task takes the keys it
    knows. ``where``: what the event's payload has to be like, e.g. ``{"kind": one_of("a", "b")}``.
    ``ctx.event`` tells the event. Raises TaskDefinitionError.
    """
    try:
        exact, tests = filters.compiled(where)
        return OnEvent(check_name("event", event), payload, exact, tests)
    except (TypeError, ValueError, PayloadError) as error:
        raise TaskDefinitionError(f"on_event({event!r}): {error}") from None


NOT_YET: Final = "the option {!r} is not in this version, and would do nothing; leave it away"
NOT_YET_OF_INVOKE: Final = (
    "deadline", "debounce", "debounce_max", "dedupe_until", "expires", "group", "throttle",
)  # fmt: skip
NOT_YET_OF_TASK: Final = (
    "batch", "concurrency", "dead_letter", "deadline", "expires", "fail_on", "fifo", "group_by",
    "group_concurrency", "group_rate", "isolated", "limits", "rate", "retry_on",
    "title", "window",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class InvokeOptions:
    """How one execution is to be created; None leaves it to the task."""

    queue: str | None = None
    id: UUID | None = None
    run_at: datetime | None = None
    delay: Seconds | None = None
    priority: int | None = None
    dedupe_key: str | None = None
    on_duplicate: str = "return"
    timeout: Seconds | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Invocation(Generic[R_co]):
    """A task with its payload, ready to be invoked."""

    task: Task[..., R_co]
    payload: object
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def options(self, **overrides: Any) -> Invocation[R_co]:
        """The same with options of ``invoke`` set, e.g. ``priority=5``."""
        _refuse_unknown_options(self.task.name, overrides)
        return replace(self, overrides={**self.overrides, **overrides})


class Task(Generic[P, R_co]):
    """A registered function; calling it runs the plain function."""

    def __init__(self, function: Callable[..., Any], options: TaskOptions) -> None:
        inner = payloads.underlying(function)
        self.function = function
        self.name: str = options.name or str(getattr(inner, "__name__", ""))
        self.queue = options.queue
        self.settings = options
        self.module: str = getattr(inner, "__module__", None) or ""
        self.place = payloads.describe(function)
        self.is_async = inspect.iscoroutinefunction(inner)
        _refuse_what_is_no_task(function, inner)
        self.binder = payloads.Binder(function, (Context, AsyncContext))
        self.result_type = ResultType.of(function)
        self.__doc__ = inner.__doc__
        self.__name__ = getattr(inner, "__name__", self.name)
        self.__wrapped__ = function
        options.validate(self)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        return cast("R_co", self.function(*args, **kwargs))

    def __repr__(self) -> str:
        return f"<Task {self.name!r} in queue {self.queue!r}>"

    @overload
    def bind(
        self: Task[Concatenate[Context[Any], Q], Any], *args: Q.args, **kwargs: Q.kwargs
    ) -> Invocation[R_co]: ...
    @overload
    def bind(
        self: Task[Concatenate[AsyncContext[Any], Q], Any], *args: Q.args, **kwargs: Q.kwargs
    ) -> Invocation[R_co]: ...
    @overload
    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Invocation[R_co]: ...
    def bind(self, *args: Any, **kwargs: Any) -> Invocation[R_co]:
        """The task with a payload, given as the function's arguments without the context.

        For a task that takes the whole payload: that one value. Raises TypeError.
        """
        return Invocation(self, self._payload(args, kwargs))

    def options(self, **overrides: Any) -> ConfiguredTask[P, R_co]:
        """The task with options of ``invoke`` set: ``task.options(priority=5).bind(...)``."""
        _refuse_unknown_options(self.name, overrides)
        return ConfiguredTask(self, overrides)

    @property
    def triggers(self) -> tuple[Cron, ...]:
        """Its schedules."""
        return tuple(each for each in self.settings.triggers if isinstance(each, Cron))

    @property
    def events(self) -> tuple[OnEvent, ...]:
        """The events that start it."""
        return tuple(each for each in self.settings.triggers if isinstance(each, OnEvent))

    def _payload(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
        try:
            return self.binder.payload(args, kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}.bind() {error}") from None

    def _check_parameters(self) -> None:
        right, kind = (
            (AsyncContext, "an async def") if self.is_async else (Context, "a plain function")
        )
        if self.binder.context_type not in (None, right):
            raise TypeError(
                f"{self.binder.context!r} is annotated {self.binder.context_type.__name__}, "
                f"but {kind} takes {right.__name__}"
            )
        if self.binder.parameters[:1] in (["self"], ["cls"]):
            raise TypeError(
                f"{self.binder.parameters[0]!r} cannot come from a payload; make it a function, "
                "or a static method"
            )


class AsyncTask(Task[P, R_co]):
    """A registered ``async def`` function; ``R_co`` is what it returns when awaited."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self.function(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class ConfiguredTask(Generic[P, R_co]):
    """A task with options of ``invoke`` set."""

    task: Task[P, R_co]
    overrides: Mapping[str, Any]

    @overload
    def bind(
        self: ConfiguredTask[Concatenate[Context[Any], Q], Any], *args: Q.args, **kwargs: Q.kwargs
    ) -> Invocation[R_co]: ...
    @overload
    def bind(
        self: ConfiguredTask[Concatenate[AsyncContext[Any], Q], Any],
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Invocation[R_co]: ...
    @overload
    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Invocation[R_co]: ...
    def bind(self, *args: Any, **kwargs: Any) -> Invocation[R_co]:
        """As ``Task.bind``, with these options."""
        return Invocation(self.task, self.task._payload(args, kwargs), self.overrides)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """What ``@task`` takes; see :func:`task`."""

    name: str | None = None
    queue: str = "default"
    max_attempts: int = 3
    max_crashes: int = 3
    retry: timing.RetryPolicy | None = None
    timeout: Seconds | None = None
    priority: int = 0
    triggers: Sequence[Cron | OnEvent] = ()
    invocable: bool = True
    retain_completed: Seconds | bool | None = None
    retain_failed: Seconds | bool | None = None
    middleware: Sequence[middleware_of.Layer] = ()

    def validate(self, task: Task[..., Any]) -> None:
        """Raise TaskDefinitionError for the first option that is wrong, naming the task's place."""
        try:
            check_name("task", task.name)
            task._check_parameters()
            check_name("queue", self.queue)
            _check_count("max_attempts", self.max_attempts, 1)
            _check_count("max_crashes", self.max_crashes, 0)
            check_priority(self.priority)
            _check_switch("invocable", self.invocable)
            timing.checked_retry(self.retry)
            check_duration("timeout", self.timeout, positive=True)
            _check_retention("retain_completed", self.retain_completed)
            _check_retention("retain_failed", self.retain_failed)
            middleware_of.check(self.middleware, is_async=task.is_async)
            self._check_triggers(task)
        except (TypeError, ValueError, ConductorError) as error:
            raise TaskDefinitionError(f"Task {task.name!r}, {task.place}: {error}") from None

    def _check_triggers(self, task: Task[..., Any]) -> None:
        names = set()
        if not isinstance(self.triggers, Sequence):
            raise TypeError(f"triggers={self.triggers!r} is not a list")
        for trigger in self.triggers:
            if isinstance(trigger, OnEvent):
                if trigger.payload is not None:
                    self._check_payload(task, trigger.event, trigger.payload)
                continue
            if not isinstance(trigger, Cron):
                raise TypeError(
                    f"triggers holds {trigger!r}, which is made by neither cron() nor on_event()"
                )
            if trigger.name in names:
                raise ValueError(f"two triggers are named {trigger.name!r}; give one a name=")
            names.add(check_name("trigger", trigger.name))
            self._check_payload(task, trigger.name, trigger.payload)

    def _check_payload(self, task: Task[..., Any], name: str, payload: object) -> None:
        try:
            task.binder.check(task.name, trigger_payload(name, payload))
        except PayloadError as error:
            raise ValueError(f"trigger {name!r} cannot run it: {error}") from None


class Decorator(Protocol):
    """What ``@task(...)`` makes a task with."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


@overload
def task(function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(
    *,
    name: str | None = None,
    queue: str = "default",
    max_attempts: int = 3,
    max_crashes: int = 3,
    retry: timing.RetryPolicy | None = None,
    timeout: Seconds | None = None,
    priority: int = 0,
    triggers: Sequence[Cron | OnEvent] = (),
    invocable: bool = True,
    retain_completed: Seconds | bool | None = None,
    retain_failed: Seconds | bool | None = None,
    middleware: Sequence[middleware_of.Layer] = (),
) -> Decorator: ...
def task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function a task.

    ``name``: default the function's name. ``queue``: where its executions wait.
    ``max_attempts``: how often it may fail (raise or time out). ``max_crashes``: how often it
    may take its process down (0: it runs at most once). ``retry``: seconds after failure 1, 2,
    ... (the last repeats), a Backoff, or ``(failures, error) -> seconds or None``; default 15,
    30, 60, 120, 300, 600, 1200, 2400, 3600, then 7200, ± 10 %. ``timeout``: seconds of running
    time. ``priority``: higher first. ``triggers``: made by :func:`cron` and :func:`on_event`.
    ``invocable=False``: only its triggers run it. ``retain_completed``, ``retain_failed``: seconds
    to keep an ended execution; 0 or False deletes at once, ``math.inf`` keeps for ever, None: the
    configuration's. ``middleware``: context managers around each run, made by functions that are
    given the context; they stand inside those of ``[tasks] middleware``.

    Raises TaskDefinitionError, naming the place, for options or a signature that cannot work.
    """

    def decorate(function: Callable[..., Any]) -> Task[..., Any]:
        try:
            made = TaskOptions(**options)
        except TypeError:
            raise TaskDefinitionError(_unknown_option(function, options)) from None
        is_async = inspect.iscoroutinefunction(payloads.underlying(function))
        defined: Task[..., Any] = (AsyncTask if is_async else Task)(function, made)
        defined_tasks.add(defined, defined.module)
        return defined

    return decorate if function is None else decorate(function)


def trigger_payload(name: str, payload: object) -> str:
    """The payload of a trigger's executions as JSON text; none given is an empty object."""
    value = {} if payload is None else payload
    return payloads.encode(value, f"The payload of trigger {name!r}")


def as_seconds(value: Seconds | None) -> float | None:
    return value.total_seconds() if isinstance(value, timedelta) else value


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Up to three names that resemble this one, likeliest first."""
    return difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)


def check_name(what: str, name: object) -> str:
    """The name, if it is one; raises ValueError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"the {what} name {shown(name)} is not 1 to 200 of the characters A-Z a-z 0-9 _ . : -"
        )
    return name


def check_priority(priority: object) -> int:
    """The priority, if it is one; raises ValueError."""
    if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) > 32767:
        raise ValueError(f"priority={shown(priority)} is not a whole number from -32767 to 32767")
    return priority


def _refuse_what_is_no_task(function: Any, inner: Any) -> None:
    if not callable(function) or isinstance(function, (type, Task)):
        raise TaskDefinitionError(
            f'@task is for functions, not for {function!r}; options go by keyword: @task(name="x")'
        )
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        place = payloads.describe(function)
        raise TaskDefinitionError(f"{place}: a task returns its result and cannot yield")


def _unknown_option(function: Callable[..., Any], options: Mapping[str, Any]) -> str:
    known = list(TaskOptions.__dataclass_fields__)
    wrong = next(name for name in options if name not in known)
    if wrong in NOT_YET_OF_TASK:
        return f"{payloads.describe(function)}: {NOT_YET.format(wrong)}"
    return f"{payloads.describe(function)}: @task has no option {wrong!r}.{_meant(wrong, known)}"


def _refuse_unknown_options(task_name: str, overrides: Mapping[str, Any]) -> None:
    refuse_unknown_options(f"{task_name}.options()", overrides)


def refuse_unknown_options(where: str, given: Mapping[str, Any]) -> None:
    """Raise TypeError for what is no option of ``invoke``, or not one yet."""
    known = list(InvokeOptions.__dataclass_fields__)
    for name in given:
        if name in NOT_YET_OF_INVOKE:
            raise TypeError(f"{where}: {NOT_YET.format(name)}")
        if name not in known:
            raise TypeError(f"{where} has no option {name!r}.{_meant(name, known)}")


def _meant(name: str, known: Iterable[str]) -> str:
    meant = nearest(name, known)
    return f" Did you mean {meant[0]!r}?" if meant else ""


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
        raise ValueError(f"{name}={value!r} is not a whole number from {least} to {MOST:,}")


def _check_switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is neither True nor False")


def check_duration(name: str, value: object, *, positive: bool = False) -> None:
    """Raise ValueError unless it is None, or seconds or a timedelta within a century."""
    if value is None:
        return
    number = timing.seconds(value, name)
    if positive and number <= 0:
        raise ValueError(f"{name}={shown(value)} must be more than zero seconds")
    if number > LONGEST:
        raise ValueError(f"{name}={shown(value)} is more than a century")


def _check_retention(name: str, value: object) -> None:
    if value is None or isinstance(value, bool) or value == math.inf:
        return
    check_duration(name, value)
