"""A thousand seeds: servers and clients over the real SQL, their next statement chosen at random.

Replies are lost after the commit, requests before it, messages delivered twice and late; servers
are killed, frozen past their lease, declared dead while they still work, stopped; two schedulers
believe that they lead; clients cancel, retry and roll back at any moment. After each seed the
evidence that triggers took down is judged (see tests/support/interleaving).

A failure prints its seed and everything that led to it. That seed alone, again and again the same:

    CONDUCTOR_TEST_SEED=417 pytest tests/store/test_interleaving.py -k no_interleaving

The seeds are shared out among the kinds of Postgres there are. What the test is worth is proved in
tests/services/test_planted_defects.py.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.support.interleaving.drama import PUMPS, Theatre, opened
from tests.support.postgres import Flavours, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conductor_cli.database import Database

SEEDS: Final = 1000
SEEDS_OF_PUMPS: Final = 200
BLOCK: Final = 50
GIVEN: Final = os.environ.get("CONDUCTOR_TEST_SEED")
BLOCKS: Final = [[int(GIVEN)]] if GIVEN else [range(n, n + BLOCK) for n in range(0, SEEDS, BLOCK)]
FLAVOURS: Final = Flavours().names


@pytest.fixture
def theatre(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Theatre]:
    with opened(database, monkeypatch) as made:
        yield made


@pytest.mark.parametrize("seeds", BLOCKS, ids=lambda seeds: f"from_{seeds[0]}")
def test_no_interleaving_breaks_a_promise(
    theatre: Theatre, postgres: Server, seeds: Any, request: pytest.FixtureRequest
) -> None:
    mine = FLAVOURS.index(request.node.callspec.params["postgres"])
    for seed in seeds if GIVEN else seeds[mine :: len(FLAVOURS)]:
        theatre.play(seed)


@pytest.mark.parametrize("first", range(0, SEEDS_OF_PUMPS, BLOCK))
def test_no_interleaving_of_two_busy_pumps_breaks_a_promise(
    database: Database, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    with opened(database, monkeypatch, PUMPS) as theatre:
        for seed in range(first, first + BLOCK):
            theatre.play(seed)


def test_a_seed_plays_the_same_again(theatre: Theatre) -> None:
    first, other, again = (theatre.play(seed) for seed in (5, 6, 5))
    assert first.stage.steps == again.stage.steps
    assert first.stage.outline() == again.stage.outline()
    assert first.stage.outline() != other.stage.outline()
