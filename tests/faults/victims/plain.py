"""Tasks that mean no harm."""

from __future__ import annotations

import time

from notes import body, note, wait_for

from conductor_cli import Context, task

CRASHES = 50  # more than any scenario causes


@task(max_crashes=CRASHES)
def quick(ctx: Context, seconds: float = 0.0) -> str:
    """A little work."""
    with body(ctx, "quick") as run:
        if seconds:
            time.sleep(seconds)
        return run


@task(max_crashes=CRASHES)
def until(ctx: Context, name: str, seconds: float = 600.0, polite: bool = False) -> str:
    """Works until the harness says so, whatever else it is asked."""
    with body(ctx, "until") as run:
        wait_for(ctx, name, seconds, polite=polite)
        return run


@task(max_crashes=CRASHES)
def hold_once(ctx: Context, seconds: float = 600.0) -> str:
    """The first attempt holds its thread, the next ones return at once."""
    with body(ctx, "hold_once") as run:
        if ctx.runs == 1:
            time.sleep(seconds)
        return run


@task(max_crashes=CRASHES)
def stepped(ctx: Context, steps: int = 3, seconds: float = 0.05) -> str:
    """Work in steps, each of which may run again until its value is recorded and never after."""
    with body(ctx, "stepped") as run:
        for number in range(steps):
            name = f"step {number}"
            ctx.step(name, _step, str(ctx.execution_id), name, seconds)
            note("step", id=ctx.execution_id, step=name, what="recorded")
        return run


def _step(id: str, name: str, seconds: float) -> int:
    note("step", id=id, step=name, what="entered")
    time.sleep(seconds)
    return 1
