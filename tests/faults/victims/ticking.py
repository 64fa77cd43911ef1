"""A schedule that ticks each second."""

from __future__ import annotations

from notes import body

from conductor_cli import Context, cron, task


@task(max_crashes=50, triggers=[cron("* * * * * *", name="each_second", missed="all")])
def second(ctx: Context) -> str:
    with body(ctx, "second") as run:
        return run
