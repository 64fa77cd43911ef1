"""What the harness has to know of a peer. One adapter file in `bench/peers/` makes one `Peer`."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

Settings = Literal["default", "tuned"]


@dataclass(frozen=True)
class Here:
    """Runs with the interpreter that runs the harness, on this checkout."""


@dataclass(frozen=True)
class Venv:
    """Runs in a virtual environment of its own, made from these pinned requirements."""

    requirements: tuple[str, ...]


@dataclass(frozen=True)
class NodeModules:
    """Runs on Node.js, in a folder of its own with these pinned packages.

    When the machine's `node` is older than `node_major`, which the peer requires, the npm package
    `node_package` (a Node.js binary for Linux on x86-64) takes its place.
    """

    packages: tuple[str, ...]
    node_major: int
    node_package: str


@dataclass(frozen=True)
class Peer:
    """One system under measurement.

    `program` is a Python module, or an .mjs file in `bench/peers/`, that speaks the protocol of
    `bench/peers/protocol.py`. `unfinished` is SQL that returns one boolean: is any execution not
    finished yet; it is polled after the last task body has ended. `skips` holds patterns of
    `measure/case/settings` that make no sense for this peer. `max_count` bounds the executions of
    one drain, for peers so slow that the full count would only cost time.
    """

    name: str
    program: str
    environment: Here | Venv | NodeModules
    unfinished: str
    skips: tuple[str, ...] = ()
    max_count: int | None = None
    note: str = ""

    def takes_part(self, measure: str, case: str, settings: Settings) -> bool:
        """Whether this peer is measured in this cell."""
        cell = f"{measure}/{case}/{settings}"
        return not any(fnmatch(cell, pattern) for pattern in self.skips)

    def count(self, wanted: int) -> int:
        """How many executions to queue when `wanted` were asked for."""
        return min(wanted, self.max_count) if self.max_count else wanted
