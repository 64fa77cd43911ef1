"""Tasks and handlers that are a burden to the log."""

from __future__ import annotations

import logging
import os
import threading

from notes import body

from conductor_cli import Context, task


@task
def chatter(ctx: Context, lines: int) -> str:
    """Says much, in both ways that there are."""
    with body(ctx, "chatter") as run:
        other = logging.getLogger("chatter")
        for n in range(lines):
            if n % 2:
                ctx.logger.info("line", n=n, padding="x" * 100)
            else:
                other.warning("line %s %s", n, "x" * 100)
        return run


class Blocking(logging.Handler):
    """One that never comes back."""

    def emit(self, record: logging.LogRecord) -> None:
        threading.Event().wait()


if os.environ.get("FAULTS_BLOCKS"):
    logging.root.addHandler(Blocking())
