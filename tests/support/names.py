"""Names of test cases that are the same in every run, so that one can be chosen by its name."""

from __future__ import annotations

import re


def named(value: object) -> str:
    """Its ``repr``, without addresses, sets in order."""
    ordered = sorted(value) if isinstance(value, (set, frozenset)) else value
    return re.sub(r" at 0x\w+", "", repr(ordered))
