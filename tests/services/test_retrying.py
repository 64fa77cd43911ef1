"""Running again what has failed: from where it was, or from its beginning."""

from __future__ import annotations

from typing import Any

import pytest

from conductor_cli import Conductor, Context, ExecutionFailed, task


@pytest.mark.parametrize("restart", [False, True])
def test_recorded_steps_are_kept_unless_it_restarts(
    conductor: Conductor, start: Any, restart: bool
) -> None:
    calls: list[str] = []

    @task(max_attempts=1)
    def work(ctx: Context) -> str:
        ctx.step("first", lambda: calls.append("first"))
        calls.append("rest")
        if len(calls) == 2:
            raise ValueError("not yet")
        return "done"

    start(work)
    id = conductor.invoke(work)
    with pytest.raises(ExecutionFailed):
        conductor.wait(id, timeout=30)
    assert conductor.retry(id, restart=restart)
    assert conductor.wait(id, work, timeout=30) == "done"
    assert calls == ["first", "rest", *(["first"] if restart else []), "rest"]
    ended = conductor.get(id)
    assert ended is not None
    assert (ended.runs, ended.failures) == (2, 0)
    assert not conductor.retry(id)
