"""What task bodies write down. Loaded in the server's process, next to nothing else."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from conductor_cli import Context

PATH = os.environ["FAULTS_EVIDENCE"]
HERE = os.path.dirname(PATH)


def note(kind: str, **fields: object) -> None:
    """One line in one write; opened anew, since tasks may close every file."""
    line = json.dumps({"kind": kind, "at": time.monotonic(), **fields}, default=str)
    file = os.open(PATH, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, line.encode() + b"\n")
    finally:
        os.close(file)


@contextmanager
def body(ctx: Context, task: str) -> Iterator[str]:
    """Start and end of a body; yields its name, which it returns as its result."""
    run = "run-" + os.urandom(8).hex()
    event = ctx.event
    tick = event.scheduled_for.isoformat() if event and event.scheduled_for else None
    note(
        "start", id=ctx.execution_id, task=task, claim=ctx.runs, pid=os.getpid(), run=run,
        tick=tick,
    )  # fmt: skip
    returned = False
    try:
        yield run
        returned = True
    finally:
        note("end", run=run, returned=returned)


def wait_for(ctx: Context, name: str, seconds: float, *, polite: bool = False) -> None:
    """Until the harness makes a file of this name, for all or for this process, or for so many
    seconds."""
    until = time.monotonic() + seconds
    paths = [os.path.join(HERE, each) for each in (name, f"{name}-{os.getpid()}")]
    while time.monotonic() < until and not any(map(os.path.exists, paths)):
        time.sleep(0.01)
        if polite:
            ctx.checkpoint()
