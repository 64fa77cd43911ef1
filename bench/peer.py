"""What the harness has to know of a peer. One adapter file in `bench/peers/` makes one `Peer`."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Settings = Literal["default", "tuned", "discard"]
Ability = Literal["keep", "later", "transact", "discard", "durable"]


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
    `measure/case/settings` that make no sense for this peer. `most` bounds the executions of one
    drain by settings, for peers so slow that the full count would only cost time. An `extra` peer
    is left out of quick runs unless named.

    `can` says what it has besides: executions for `later`; finished executions that it does
    `keep`; enqueueing that joins a transaction of the caller's (`transact`); settings called
    `discard`, the default ones except that finished executions are not kept; executions that
    remember their steps and wait for children (`durable`).
    """

    name: str
    program: str
    environment: Here | Venv | NodeModules
    unfinished: str
    skips: tuple[str, ...] = ()
    most: Mapping[Settings, int] = field(default_factory=dict)
    can: frozenset[Ability] = frozenset()
    extra: bool = False
    note: str = ""

    def takes_part(self, measure: str, case: str, settings: Settings) -> bool:
        """Whether this peer is measured in this cell."""
        if settings == "discard" and "discard" not in self.can:
            return False
        cell = f"{measure}/{case}/{settings}"
        return not any(fnmatch(cell, pattern) for pattern in self.skips)
