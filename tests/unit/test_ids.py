"""Ids of executions: version 7, and in order where many are made at once."""

from __future__ import annotations

import time
from itertools import pairwise
from uuid import RFC_4122

import pytest

from conductor_cli.invoking import ids_in_order


def test_ids_made_together_are_in_order_and_of_version_7() -> None:
    make = ids_in_order()
    before = time.time_ns() // 1_000_000
    ids = [make() for _ in range(20_000)]
    after = time.time_ns() // 1_000_000
    assert all(a < b for a, b in pairwise(ids))
    assert {(each.version, each.variant) for each in ids} == {(7, RFC_4122)}
    assert all(before <= each.int >> 80 <= after for each in ids)


@pytest.mark.parametrize("steps", [(0, 0, 0), (5, -7, 2), (-1, -1, 10)])
def test_they_are_in_order_whatever_the_clock_does(
    monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]
) -> None:
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    make = ids_in_order()
    ids = []
    for step in steps:
        ids += [make() for _ in range(1000)]
        now += step * 1_000_000
    ids += [make() for _ in range(1000)]
    assert all(a < b for a, b in pairwise(ids))
    assert {(each.version, each.variant) for each in ids} == {(7, RFC_4122)}


def test_two_batches_made_at_one_moment_have_nothing_in_common(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    one, other = ids_in_order(), ids_in_order()
    assert not {one() for _ in range(10_000)} & {other() for _ in range(10_000)}
