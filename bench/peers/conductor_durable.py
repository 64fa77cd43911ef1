"""Conductor's tasks for the measure `durable`. Apart, since the annotation of a context has to be
found where the task is defined, and `conductor.py` imports Conductor only when it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.peers.protocol import CHILDREN, STEPS, Bodies, echo
from conductor_cli import Context, task

if TYPE_CHECKING:
    from collections.abc import Callable


def make_tasks(bodies: Callable[[], Bodies], **options: Any) -> list[Any]:
    """`steps`, `children` and what these start; `bodies` is asked when they run."""

    @task(**options)
    def steps(ctx: Context, n: int, to: str) -> None:  # noqa: ARG001
        bodies().begin()
        for number in range(STEPS):
            ctx.step(f"step-{number}", echo, number)
        bodies().end()

    @task(**options)
    def child(n: int) -> int:
        return n

    @task(**options)
    def children(ctx: Context, n: int, to: str) -> None:  # noqa: ARG001
        bodies().begin()  # again when it goes on, which changes nothing
        ctx.invoke_many("children", child, [{"n": number} for number in range(CHILDREN)])
        bodies().end()

    return [steps, child, children]
