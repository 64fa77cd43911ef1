"""How much one execution may record."""

from __future__ import annotations

from typing import Any

import pytest

from conductor_cli import Conductor, Context, ExecutionFailed, ledger, task


def test_results_that_are_too_much_together_end_the_execution_and_leave_others_alone(
    conductor: Conductor, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "JOURNAL_LIMIT", 10_000)
    made: list[int] = []

    def page(n: int) -> str:
        made.append(n)
        return "x" * 4000

    @task(max_attempts=3, retry=[0.01])
    def crawl(ctx: Context) -> str:
        for n in range(5):
            ctx.step(f"page-{n}", page, n)
            ctx.sleep(f"pause-{n}", 0.01)  # what earlier runs have recorded counts as well
        return "done"

    @task
    def other() -> str:
        return "done"

    start(crawl, other)
    with pytest.raises(
        ExecutionFailed, match=r"step 'page-2' is 4,002 .* recorded 8,004 .* 10,000"
    ):
        conductor.wait(conductor.invoke(crawl), timeout=30)
    assert made == [0, 1, 2]
    assert conductor.wait(conductor.invoke(other), other, timeout=30) == "done"
