"""Random bits that no task can seed: tokens of claims, ids, pauses that must differ.

A task that calls ``random.seed(42)`` seeds the generator of the ``random`` module for the whole
process. Two servers would then make the same tokens. So nothing here has a state: every bit comes
from the operating system when it is asked for. A forked process, or a copied machine, has no
generator to share with the other one.
"""

from __future__ import annotations

import os
from random import SystemRandom
from typing import Final

_system: Final = SystemRandom()

bits: Final = _system.getrandbits
"""So many random bits, as a number."""

uniform: Final = _system.uniform
"""A number between two others."""

share: Final = _system.random
"""A number from 0 to 1."""


def words(count: int) -> memoryview[int]:
    """So many numbers of 32 random bits, by one call to the operating system."""
    return memoryview(os.urandom(4 * count)).cast("I")
