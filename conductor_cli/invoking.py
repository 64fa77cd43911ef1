"""What is to be invoked, and the row that is sent for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC
from typing import Any, Final
from uuid import UUID

import msgspec

from conductor_cli import arguments, entropy, errors, payloads, registry
from conductor_cli.registry import ConfiguredTask, Invocation, InvokeOptions, Task

Ids = list[UUID]
KEY_LIMIT: Final = 500

Target = Task[..., Any] | ConfiguredTask[..., Any] | Invocation[Any] | str


class Invoked(msgspec.Struct, frozen=True):
    """What is to be invoked: a task or its name, a payload, and how."""

    task: Task[..., Any] | str
    payload: object
    options: InvokeOptions

    @classmethod
    def of(cls, target: Target, payload: object, given: Mapping[str, Any]) -> Invoked:
        if isinstance(target, Invocation):
            if payload is not None:
                raise TypeError("an Invocation has its payload; do not pass another")
            return cls(target.task, target.payload, checked({**target.overrides, **given}))
        if isinstance(target, ConfiguredTask):
            return cls(target.task, payload, checked({**target.overrides, **given}))
        if not isinstance(target, Task | str):
            raise arguments.no_task(target)
        return cls(target, payload, checked(given))

    @classmethod
    def common(cls, target: Target, given: Mapping[str, Any]) -> Invoked:
        """What many payloads have in common. Each execution has an id and a key of its own."""
        if isinstance(target, Invocation):
            raise TypeError(
                "an Invocation has its payload: pass the task itself, and Invocations among the "
                "payloads"
            )
        made = cls.of(target, None, given)
        for name in ("id", "dedupe_key"):
            if getattr(made.options, name) is not None:
                raise TypeError(
                    f"{name}={arguments.shown(getattr(made.options, name))} cannot be common to "
                    "many executions: all but the first would be lost. Give each its own: "
                    f"task.bind(...).options({name}=...) among the payloads"
                )
        return made


def ids(rows: Sequence[Row], met: Mapping[UUID, UUID | None]) -> Ids:
    """The ids that callers get, where some rows ``met`` an execution with their dedupe key, or
    (None) found their id taken by an execution of another task.

    Raises Duplicate for that, and where it was asked for.
    """
    for row in rows if met else ():
        if row.id in met and met[row.id] is None:
            raise errors.Duplicate(row.id)
        if row.options.on_duplicate == "raise" and row.id in met:
            raise errors.Duplicate(met[row.id] or row.id, row.options.dedupe_key)
    return [met.get(row.id) or row.id for row in rows]


def new_id() -> UUID:
    """A version 7 UUID (RFC 9562): it sorts by time, to the millisecond."""
    milliseconds = time.time_ns() // 1_000_000
    noise = entropy.bits(74)
    return UUID(
        int=(milliseconds << 80) | (7 << 76) | (noise >> 62 << 64) | (2 << 62) | (noise & _LOW)
    )


def ids_in_order() -> Callable[[], UUID]:
    """Makes ids each of which sorts after the last (RFC 9562, 6.2). For one thread.

    What is inserted together then stands together in the primary key, in the order of the queue.
    """
    moment, last = 0, 0
    noise = iter(entropy.words(0))

    def make() -> UUID:
        nonlocal moment, last, noise
        if time.time_ns() // 1_000_000 > moment:
            last = new_id().int & ~_ROOM
            moment = last >> 80
        else:
            if (word := next(noise, None)) is None:
                noise = iter(entropy.words(256))
                word = next(noise)
            last += 1 + word
        return UUID(int=last)

    return make


_LOW: Final = (1 << 62) - 1
_ROOM: Final = 1 << 61  # so that half a billion follow before a bit that means something is reached


def checked(given: Mapping[str, Any]) -> InvokeOptions:
    """Options of ``invoke``; raises TypeError for unknown ones, ValueError for bad values."""
    if not given:
        return PLAIN
    registry.refuse_unknown_options("invoke", given)
    options = InvokeOptions(**given)
    _check(options)
    if options.id is not None:
        options = replace(options, id=arguments.as_id(options.id))
    if options.run_at is not None:
        options = replace(options, run_at=arguments.as_moment(options.run_at, "run_at"))
    return options


def _check(options: InvokeOptions) -> None:
    if options.queue is not None:
        registry.check_name("queue", options.queue)
    if options.priority is not None:
        registry.check_priority(options.priority)
    if options.run_at is not None and options.delay is not None:
        raise ValueError("run_at and delay are both given; choose one")
    registry.check_duration("delay", options.delay)
    registry.check_duration("timeout", options.timeout, positive=True)
    if options.dedupe_key is not None:
        arguments.as_text(options.dedupe_key, "dedupe_key", KEY_LIMIT, least=1)
    if options.on_duplicate == "supersede":
        raise ValueError(
            'on_duplicate="supersede" is not in this version; cancel the other one by its id first'
        )
    if options.on_duplicate not in ("return", "replace", "raise"):
        raise ValueError(
            f"on_duplicate={arguments.shown(options.on_duplicate)} is none of "
            '"return", "replace", "raise"'
        )
    if options.metadata is not None and not isinstance(options.metadata, Mapping):
        raise TypeError(
            f"metadata={arguments.shown(options.metadata)} is not a mapping of keys to values"
        )


class Row(msgspec.Struct, frozen=True, gc=False):
    """One execution to be; ``payload`` is JSON text, names have been checked."""

    id: UUID
    task: str
    queue: str
    rank: int
    payload: str
    options: InvokeOptions

    @property
    def kind(self) -> tuple[str, str, int] | None:
        """What the plain way in needs to be told once for many; None: it needs the other."""
        return (self.task, self.queue, self.rank) if self.options is PLAIN else None

    @property
    def full(self) -> str:
        """An element of the array that ``conductor.enqueue`` takes."""
        rest = "" if self.options is PLAIN else _rest(self.options)
        return (
            f'{{"id":"{self.id}","task":"{self.task}","queue":"{self.queue}",'
            f'"rank":{self.rank}{rest},"payload":{self.payload}}}'
        )


def row(task: str, queue: str, priority: int, payload: str, options: InvokeOptions) -> Row:
    """The row of one invocation; ``priority`` is the task's."""
    return Row(options.id or new_id(), task, queue, rank_of(priority, options), payload, options)


def rank_of(priority: int, options: InvokeOptions) -> int:
    """Where it stands in its queue; ``priority`` is the task's."""
    return -(priority if options.priority is None else options.priority)


def array(elements: Iterable[str]) -> str:
    """A JSON array of JSON texts."""
    return f"[{','.join(list(elements))}]"


def _rest(options: InvokeOptions) -> str:
    given: dict[str, Any] = {
        "run_at": None if options.run_at is None else options.run_at.astimezone(UTC),
        "delay": registry.as_seconds(options.delay),
        "timeout": registry.as_seconds(options.timeout),
        "dedupe_key": options.dedupe_key,
        "on_duplicate": options.on_duplicate,
    }
    text = msgspec.json.encode({k: v for k, v in given.items() if v is not None}).decode()
    if options.metadata is not None:
        text = f'{text[:-1]},"metadata":{payloads.encode(options.metadata, "metadata")}}}'
    return f",{text[1:-1]}"


PLAIN: Final = InvokeOptions()
