"""The faults, one family a file; importing them fills the table."""

from __future__ import annotations

from typing import Final

# isort: off
from tests.faults.scenarios import (  # noqa: F401  (in the order of the table)
    kills,
    leaders,
    stops,
    hostile,
    outages,
    network,
    crowds,
    clocks,
    deploys,
    output,
)

# isort: on

ELSEWHERE: Final = (
    "A thousand interleavings over the SQL: `tests/store/test_interleaving.py`.",
    "Hostile text in every column of the dashboard: there is no dashboard yet.",
    "DST nights and 29 February as arithmetic: `tests/unit/test_timing.py`.",
)
