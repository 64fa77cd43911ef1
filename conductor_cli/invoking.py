"""What is to be invoked, and the row that is sent for it."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Final, cast
from uuid import UUID

import msgspec

from conductor_cli import errors, payloads, registry, timing
from conductor_cli.registry import ConfiguredTask, Invocation, InvokeOptions, Task

Ids = list[UUID]
KEY_LIMIT: Final = 500

Target = Task[..., Any] | ConfiguredTask[..., Any] | Invocation[Any] | str


@dataclass(frozen=True, slots=True)
class Invoked:
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
        return cls(target, payload, checked(given))

    def with_payload(self, payload: object) -> Invoked:
        """The same with another payload."""
        return Invoked(self.task, payload, self.options)


def ids(
    rows: Sequence[dict[str, Any]], targets: Sequence[Invoked], met: Mapping[UUID, UUID]
) -> Ids:
    """The ids that callers get, where some rows ``met`` an execution with their dedupe key.

    Raises Duplicate where that was asked for.
    """
    if not met:
        return [row["id"] for row in rows]
    for row, target in zip(rows, targets, strict=True):
        if target.options.on_duplicate == "raise" and row["id"] in met:
            raise errors.Duplicate(met[row["id"]], str(target.options.dedupe_key))
    return [met.get(row["id"], row["id"]) for row in rows]


def new_id() -> UUID:
    """A version 7 UUID (RFC 9562): it sorts by time, to the millisecond."""
    milliseconds = time.time_ns() // 1_000_000
    noise = _random().getrandbits(74)
    return UUID(
        int=(milliseconds << 80) | (7 << 76) | (noise >> 62 << 64) | (2 << 62) | (noise & _LOW)
    )


_LOW: Final = (1 << 62) - 1
_local: Final = threading.local()


def _random() -> random.Random:
    # One per thread and process: a fork must not repeat its parent's ids.
    if getattr(_local, "pid", None) != os.getpid():
        _local.pid, _local.random = os.getpid(), random.Random(os.urandom(32))
    return cast("random.Random", _local.random)


def checked(given: Mapping[str, Any]) -> InvokeOptions:
    """Options of ``invoke``; raises TypeError for unknown ones, ValueError for bad values."""
    try:
        options = InvokeOptions(**given)
    except TypeError:
        known = InvokeOptions.__dataclass_fields__
        wrong = next(name for name in given if name not in known)
        meant = registry.nearest(wrong, known)
        hint = f" Did you mean {meant[0]!r}?" if meant else ""
        raise TypeError(f"invoke has no option {wrong!r}.{hint}") from None
    _check(options)
    return options


def _check(options: InvokeOptions) -> None:
    if options.queue is not None:
        registry.check_name("queue", options.queue)
    if options.priority is not None:
        registry.check_priority(options.priority)
    if options.run_at is not None and options.run_at.tzinfo is None:
        raise ValueError(f"run_at={options.run_at!r} has no time zone; pass an aware datetime")
    if options.run_at is not None and options.delay is not None:
        raise ValueError("run_at and delay are both given; choose one")
    if options.delay is not None:
        timing.seconds(options.delay, "delay")
    if options.timeout is not None and timing.seconds(options.timeout, "timeout") <= 0:
        raise ValueError(f"timeout={options.timeout!r} must be more than zero seconds")
    _check_text("dedupe_key", options.dedupe_key)
    _check_text("group", options.group)
    if options.on_duplicate not in ("return", "replace", "raise"):
        raise ValueError(
            f'on_duplicate={options.on_duplicate!r} is none of "return", "replace", "raise"'
        )


def _check_text(name: str, text: object) -> None:
    if text is None:
        return
    if not isinstance(text, str) or not 0 < len(text) <= KEY_LIMIT or "\0" in text:
        raise ValueError(f"{name}={text!r} is not a text of 1 to {KEY_LIMIT} characters")


def row(
    task: str, queue: str, priority: int, payload: str, options: InvokeOptions
) -> dict[str, Any]:
    """One element of the array that ``conductor.enqueue`` takes; ``payload`` is JSON text."""
    row: dict[str, Any] = {
        "id": options.id or new_id(),
        "task": task,
        "queue": queue,
        "payload": msgspec.Raw(payload.encode()),
        "rank": -(priority if options.priority is None else options.priority),
    }
    if options == _PLAIN:
        return row
    if options.run_at is not None:
        row["run_at"] = options.run_at.astimezone(UTC)
    if options.delay is not None:
        row["delay"] = registry.as_seconds(options.delay)
    if options.timeout is not None:
        row["timeout"] = registry.as_seconds(options.timeout)
    if options.metadata is not None:
        row["metadata"] = msgspec.Raw(payloads.encode(options.metadata, "metadata").encode())
    row["dedupe_key"], row["group"] = options.dedupe_key, options.group
    row["on_duplicate"] = options.on_duplicate
    return row


_PLAIN: Final = InvokeOptions()
