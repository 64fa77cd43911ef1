"""Nothing that has to be unique comes from a generator that a task can seed, or a fork can copy."""

from __future__ import annotations

import ast
import ctypes
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest

import conductor_cli
from conductor_cli import Backoff, entropy, service, timing
from conductor_cli.holding import Holding, SuspectLane
from conductor_cli.invoking import ids_in_order, new_id
from conductor_cli.sections import WorkerConfig

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = Path(conductor_cli.__file__).parent


def token() -> int:
    holding = Holding(WorkerConfig(), lambda: False, lambda _: False, SuspectLane())
    holding.wakers = [Mock()]
    plan = holding.plan(was_active=False)
    assert plan is not None
    return plan.token


@pytest.mark.parametrize(
    "make",
    [
        token,
        lambda: new_id().int & (1 << 62) - 1,
        lambda: ids_in_order()().int & (1 << 61) - 1,
        lambda: Backoff(10, jitter=0.5).delay(1),
        lambda: timing.retry_delay(None, 1, ValueError()),
        lambda: service.backoff(3),
    ],
    ids=["token", "id", "id of many", "backoff", "default retry", "pause after an outage"],
)
def test_a_seed_that_a_task_sets_repeats_nothing(make: Callable[[], float]) -> None:
    made = []
    for _ in range(5):
        random.seed(42)
        made.append(make())
    assert len(set(made)) == 5


def test_ids_made_together_after_a_seed_differ() -> None:
    made = []
    for _ in range(3):
        random.seed(42)
        make = ids_in_order()
        made += [make() for _ in range(600)]
    assert len(set(made)) == 1800


@pytest.mark.parametrize("fork", [os.fork, ctypes.CDLL(None).fork], ids=["python", "c library"])
def test_a_forked_process_makes_others(fork: Callable[[], int]) -> None:
    """Also one that Python has not been told of, as a C library makes it."""
    new_id()
    read_end, write_end = os.pipe()
    child = fork()
    made = [entropy.bits(63) for _ in range(5)] + [new_id().int & (1 << 62) - 1 for _ in range(5)]
    if child == 0:
        os.write(write_end, " ".join(map(str, made)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = set(map(int, os.read(read_end, 4096).split()))
    assert len(theirs) == 10
    assert not theirs & set(made)


def test_no_file_of_the_package_uses_a_generator_that_can_be_seeded() -> None:
    """``SystemRandom`` has no state; everything else of the module ``random`` has."""
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if _is_seedable(node)
    ]
    assert found == []


@pytest.mark.parametrize(
    "line", ["import random", "import random as r", "from random import uniform", "import numpy"]
)
def test_the_search_finds(line: str) -> None:
    assert any(map(_is_seedable, ast.walk(ast.parse(line))))


def _is_seedable(node: ast.AST) -> bool:
    match node:
        case ast.Import(names=names):
            return any(each.name.partition(".")[0] in ("random", "numpy") for each in names)
        case ast.ImportFrom(module="random" | "numpy" | "numpy.random", names=names):
            return any(each.name != "SystemRandom" for each in names)
    return False
