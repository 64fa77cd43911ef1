"""Tasks seed the process's generator, as numeric programs do."""

from __future__ import annotations

import random
from typing import Any
from uuid import UUID

from conductor_cli import Conductor, Context, task


def test_claims_of_tasks_that_seed_have_tokens_of_their_own(
    conductor: Conductor, start: Any
) -> None:
    """One claim each: the next is invoked when the last has ended, and the seed is set again."""

    @task
    def simulate(ctx: Context) -> str:
        random.seed(42)
        return str(ctx.start("child", follow))

    @task
    def follow() -> None:
        random.seed(42)

    start(simulate, follow)
    children = []
    for _ in range(10):
        children.append(conductor.wait(conductor.invoke(simulate), timeout=20))
        conductor.wait(UUID(children[-1]), timeout=20)
    assert len(set(children)) == 10
    with conductor.database.connection() as conn:
        tokens = [token for (token,) in conn.execute("select token from conductor.history")]
    assert len(tokens) == len(set(tokens)) == 20
