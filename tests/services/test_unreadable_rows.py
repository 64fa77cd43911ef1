"""A claimed row that Python cannot read is failed alone; its neighbours run."""

from __future__ import annotations

from typing import Any

import pytest

from conductor_cli import Conductor, WorkerConfig, task

RAN: list[int] = []


@task
def step(n: int) -> int:
    RAN.append(n)
    return n


@pytest.mark.parametrize("run_at", ["-infinity", "0044-03-15 BC", "10000-01-01"])
@pytest.mark.parametrize("batch", [1, 100])
def test_it_fails_with_the_reason_and_is_told(
    conductor: Conductor, start: Any, heard: Any, run_at: str, batch: int
) -> None:
    RAN.clear()
    ids = conductor.invoke_many(step, [{"n": n} for n in range(12)])
    with conductor.database.connection() as conn:
        for bad in (ids[0], ids[5], ids[11]):
            conn.execute("update conductor.live set run_at = %s where id = %s", [run_at, bad])
    start(step, default_worker=WorkerConfig(concurrency=2, fetch_batch_size=batch))
    for n in {*range(12)} - {0, 5, 11}:
        assert conductor.wait(ids[n], step, timeout=20) == n
    heard.wait("execution.failed", count=3)
    with conductor.database.connection() as conn:
        rows = conn.execute(
            "select id, state::text, error ->> 'message' from conductor.history"
            " where state = 'f' order by id"
        ).fetchall()
        left = conn.execute("select count(*) from conductor.live").fetchone()
    assert left == (0,)
    assert [id for id, _, _ in rows] == sorted([ids[0], ids[5], ids[11]])
    assert all("its run_at: " in message for _, _, message in rows)
    assert sorted(RAN) == sorted({*range(12)} - {0, 5, 11})


def test_json_that_is_too_deep_fails_alone(conductor: Conductor, start: Any) -> None:
    good = conductor.invoke(step, {"n": 1})
    deep = "[" * 6000 + "]" * 6000
    with conductor.database.connection() as conn:
        row = conn.execute(
            "select conductor.invoke('step', %s::jsonb, 'default')", [f'{{"n": {deep}}}']
        ).fetchone()
    assert row is not None
    start(step)
    assert conductor.wait(good, step, timeout=20) == 1
    for _ in range(400):
        with conductor.database.connection() as conn:
            found = conn.execute(
                "select state::text, failures from conductor.history where id = %s", [row[0]]
            ).fetchone()
            if found:
                break
            conn.execute("select pg_sleep(0.05)")
    assert found == ("f", 1)
