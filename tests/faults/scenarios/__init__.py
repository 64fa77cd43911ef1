"""The faults, one family a file; importing them fills the table."""

from __future__ import annotations

from typing import Final

from tests.faults.scenarios import (  # noqa: F401  (in the order of the table)
    kills,
    leaders,
    network,
    outages,
    stops,
)

ELSEWHERE: Final = (
    "Old and new version together, migration under load, the migrator killed at each statement: "
    "scenarios of their own.",
    "Hostile text in every column of the dashboard: there is no dashboard yet.",
    "DST nights and 29 February as arithmetic: `tests/unit/test_timing.py`.",
)
