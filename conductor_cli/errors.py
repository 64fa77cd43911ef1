"""Every error a user of Conductor can meet, and the words a task ends itself with.

::

    Exception
    ├── ConductorError
    │   ├── ConfigError            the configuration is wrong (.problems: all of them)
    │   ├── TaskDefinitionError    a @task or one of its options is wrong; a module fails to import
    │   ├── UnknownTask            no task of that name (.name, .nearest)
    │   ├── PayloadError           a payload or a result does not fit, or cannot be stored
    │   ├── DatabaseUnavailable    Postgres cannot be asked, or cannot do it now
    │   │   ├── CredentialsRefused it answers, and refuses user, password or database
    │   │   ├── DatabaseBusy       a lock, a deadlock, a time limit: call again
    │   │   └── DatabaseReadOnly   it takes no writes: a standby
    │   ├── PermissionRefused      the role lacks a right on Conductor's tables
    │   ├── SchemaMissing          the database has no Conductor schema, or one too old
    │   ├── SchemaTooNew           the database is newer than this program
    │   ├── Duplicate              the same key met on_duplicate="raise"; an id that is taken (.id)
    │   ├── ExecutionFailed        what wait() raises (.id, .error)
    │   ├── ExecutionCancelled     (.id, .reason)
    │   ├── ExecutionNotFound      (.id)
    │   ├── ChildFailed            what ctx.invoke() and ctx.wait() raise (.id, .task, .error)
    │   ├── ChildCancelled         (.id, .task, .reason)
    │   ├── TimedOut               something did not come in time; also a TimeoutError
    │   │   ├── ChildTimedOut      a child, or an execution that was waited for (.id, .task)
    │   │   ├── EventTimedOut      no event came (.event)
    │   │   └── StepTimedOut       a step took longer than its timeout (.step, .seconds)
    │   ├── StepError              the task uses its steps in a way that cannot work
    │   └── ShutdownTimeout        stop() did not finish inside shutdown_timeout
    └── TaskSignal                 what a task raises to end itself
        ├── Cancel                 ends cancelled
        ├── Fail                   ends failed, without a retry
        └── Retry                  runs again after a delay

    BaseException
    └── Suspension                 leaves a task's thread; never caught by `except Exception`
        ├── Released               the server is stopping, or has lost the claim
        ├── Cancelling             somebody has cancelled the execution (.reason)
        ├── TaskTimeout            the task's timeout has passed
        └── Suspending             the task sleeps or waits: go on when that is over
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from conductor_cli.models import ExecutionError, Suspended


class _Travelling(Exception):
    """Survives pickling, also when its constructor does not take ``args``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (type(self), self.args, self.__dict__)


def _remade(kind: type[Exception], args: tuple[Any, ...], attributes: dict[str, Any]) -> Exception:
    error = kind.__new__(kind, *args)
    error.args = args  # OSError's leaves that to its constructor
    error.__dict__.update(attributes)
    return error


class ConductorError(_Travelling):
    """The root of everything Conductor raises on purpose."""


class ConfigError(ConductorError):
    """The configuration is wrong.

    ``problems`` has one readable line for each mistake, so that all can be mended at once.
    """

    def __init__(self, *problems: str) -> None:
        self.problems: Sequence[str] = problems
        super().__init__("\n".join(problems))


class TaskDefinitionError(ConductorError):
    """A task, a trigger or a module of tasks is wrong; the message names the place."""


class UnknownTask(ConductorError):
    """No task of this name is known where one was needed."""

    def __init__(self, name: str, nearest: Sequence[str] = (), hint: str = "") -> None:
        self.name = name
        self.nearest = tuple(nearest)
        meant = f" Did you mean {' or '.join(map(repr, self.nearest))}?" if self.nearest else ""
        super().__init__(f"No task is named {name!r}.{meant}{' ' + hint if hint else ''}")


class PayloadError(ConductorError):
    """A payload does not fit its task, or a value cannot be stored as JSON."""


class DatabaseUnavailable(ConductorError):
    """Postgres could not be reached, went away and did not come back in time, or cannot do now
    what it was asked."""


class CredentialsRefused(DatabaseUnavailable):
    """Postgres answered, and refused the user, the password or the database."""


class DatabaseBusy(DatabaseUnavailable):
    """Postgres answered and could not do it now: a lock, a deadlock, or a statement's time was up.

    Nothing was changed. The same call may succeed a moment later.
    """


class DatabaseReadOnly(DatabaseUnavailable):
    """Postgres answered and takes no writes: it is a standby, or set to be read-only."""


class PermissionRefused(ConductorError):
    """The role of the connection lacks a right; the message names the table or function."""


class SchemaMissing(ConductorError):
    """The database has no Conductor schema, or one older than this program needs."""


class SchemaTooNew(ConductorError):
    """The database's schema is newer than this program and not compatible with it."""


class Duplicate(ConductorError):
    """An execution with the same dedupe key exists, or one of another task has the same id;
    ``id`` is that execution's."""

    def __init__(self, id: UUID, dedupe_key: str | None = None) -> None:
        self.id = id
        super().__init__(
            f"An execution of another task has the id {id}: choose a new one, or leave id= away."
            if dedupe_key is None
            else f"Execution {id} already has the dedupe key {dedupe_key!r}."
        )


class ExecutionFailed(ConductorError):
    """The execution that was waited for ended failed; ``error`` says why."""

    def __init__(self, id: UUID, error: ExecutionError) -> None:
        self.id = id
        self.error = error
        super().__init__(f"Execution {id} failed: {error.type}: {error.message}")


class ExecutionCancelled(ConductorError):
    """The execution that was waited for was cancelled; ``reason`` may say why."""

    def __init__(self, id: UUID, reason: str | None) -> None:
        self.id = id
        self.reason = reason
        super().__init__(f"Execution {id} was cancelled{': ' + reason if reason else '.'}")


class ExecutionNotFound(ConductorError):
    """No execution has this id: it never existed, or its retention has passed."""

    def __init__(self, id: UUID) -> None:
        self.id = id
        super().__init__(f"No execution has the id {id}.")


class ChildFailed(ConductorError):
    """The execution that a task waited for ended failed; ``error`` says why."""

    def __init__(self, id: UUID | None, task: str, error: ExecutionError) -> None:
        self.id = id
        self.task = task
        self.error = error
        super().__init__(f"Child {task} {id} failed: {error.type}: {error.message}")


class ChildCancelled(ConductorError):
    """The execution that a task waited for was cancelled; ``reason`` may say why."""

    def __init__(self, id: UUID | None, task: str, reason: str | None) -> None:
        self.id = id
        self.task = task
        self.reason = reason
        super().__init__(f"Child {task} {id} was cancelled{': ' + reason if reason else '.'}")


class TimedOut(ConductorError, TimeoutError):
    """Something that a task waited for did not come in time."""


class ChildTimedOut(TimedOut):
    """The execution that a task waited for did not end in time.

    It goes on by itself, and keeps its result.
    """

    def __init__(self, id: UUID | None, task: str) -> None:
        self.id = id
        self.task = task
        super().__init__(f"Child {task}{f' {id}' if id else ''} did not end in time.")


class EventTimedOut(TimedOut):
    """The event that a task waited for did not come in time."""

    def __init__(self, event: str) -> None:
        self.event = event
        super().__init__(f"No event {event!r} that fits came in time.")


class StepTimedOut(TimedOut):
    """A step took longer than its ``timeout``."""

    def __init__(self, step: str, seconds: float) -> None:
        self.step = step
        self.seconds = seconds
        super().__init__(f"Step {step!r} took longer than its timeout of {seconds:g} s.")


class StepError(ConductorError):
    """A task uses its steps in a way that cannot work; the message says what to do instead.

    The run ends by it, also where the task catches it.
    """

    is_final = False
    """Whether the execution ends by it, since another attempt would repeat an effect."""


class ShutdownTimeout(ConductorError):
    """Work still ran when ``shutdown_timeout`` had passed; it was handed back."""


class TaskSignal(_Travelling):
    """The base of what a task raises to end itself in a way of its choosing."""


class Cancel(TaskSignal):
    """End this execution as cancelled."""

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason
        super().__init__(reason or "")


class Fail(TaskSignal):
    """End this execution as failed, whatever its ``max_attempts``."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Retry(TaskSignal):
    """Run again after ``delay`` (seconds; None: the task's own backoff).

    ``counts=False`` makes it a snooze: it is not a failure and limits nothing.
    """

    def __init__(self, delay: float | timedelta | None = None, *, counts: bool = True) -> None:
        self.delay = delay.total_seconds() if isinstance(delay, timedelta) else delay
        self.counts = counts
        super().__init__("retry" if delay is None else f"retry in {self.delay:g} s")


class Suspension(BaseException):
    """Leaves a task's thread, by order of the system and not of the task.

    Derived from BaseException so that ``except Exception`` in a task does not stop it;
    ``finally`` blocks run, and each further call of the context raises it again.
    """


class Released(Suspension):
    """The server is stopping: this attempt is handed back and not counted."""


class Cancelling(Suspension):
    """Somebody has cancelled this execution."""

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason
        super().__init__(reason or "cancelled")


class TaskTimeout(Suspension):
    """Raised in a task's thread when its ``timeout`` has passed. It is no ``Exception``."""


class Suspending(Suspension):
    """The task sleeps or waits; it goes on in another attempt, when that is over."""

    def __init__(self, outcome: Suspended) -> None:
        self.outcome = outcome
        super().__init__(f"suspended at {outcome.name!r}")
