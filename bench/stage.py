"""What every measure works on: the server, the peers, the plan of the run and its samples."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import psycopg

from bench.environments import EnvironmentFailed
from bench.meters import ServerMeter
from bench.process import PeerFailed, PeerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bench.peer import Ability, Peer, Settings
    from bench.postgres import Postgres

DATABASE: Final = "bench_run"
SETUP_TIMEOUT: Final = 60.0  # seconds
OWN: Final[Mapping[str, Settings]] = {"conductor": "default"}
FEW: Final[Mapping[str, Settings]] = {"conductor": "default", "bare": "default"}
_BRIEFLY: Final = 10  # times fewer for a slow peer in a smoke test
_AT_LEAST: Final = 25


@dataclass(frozen=True)
class Plan:
    """How much to measure. `count`: executions per drain or bulk; `crowd`: those in the way;
    times in seconds; `brief` leaves out what a smoke test can do without."""

    brief: bool
    rounds: int
    count: int
    crowd: int
    single_seconds: float
    latency_jobs: int
    load_seconds: float
    idle_seconds: float
    settle_seconds: float
    snapshot_seconds: float
    starts: int


@dataclass(frozen=True)
class Cell:
    """One row of one table: a peer, with these settings, at this case of this measure."""

    measure: str
    case: str
    peer: str
    settings: Settings


@dataclass(frozen=True)
class Sample:
    """One measurement of one cell. The names and units of the figures are the measure's columns."""

    cell: Cell
    round: int
    figures: Mapping[str, float | None]


@dataclass
class Stage:
    """The run so far. A cell that fails is noted and left out; the others go on."""

    postgres: Postgres
    peers: Sequence[Peer]
    plan: Plan
    samples: list[Sample] = field(default_factory=list)
    failures: dict[Cell, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    _broken: set[str] = field(default_factory=set)

    def prepare(self) -> None:
        """Make each peer's environment and a template database with its schema."""
        for peer in self.peers:
            say(f"preparing {peer.name}")
            try:
                self.postgres.create(_template(peer))
                url = self.postgres.url(_template(peer))
                with PeerProcess(peer, url, "producer") as process:
                    process.call("setup", SETUP_TIMEOUT)
                    self.versions[peer.name] = process.versions
            except (PeerFailed, EnvironmentFailed) as error:
                self._broken.add(peer.name)
                self._note(Cell("setup", "", peer.name, "default"), error)

    def measure(
        self,
        measure: str,
        cases: Sequence[tuple[str, Settings]],
        run: Callable[[Stage, Peer, str, Settings], Mapping[str, float | None]],
        *,
        among: Mapping[str, Settings] | None = None,
        rounds: int | None = None,
        needs: Ability | None = None,
    ) -> None:
        """Every case for every peer, round by round, the order of peers rotating.

        `among`: only these peers, and only with these settings. `needs`: only who has it.
        """
        for number in range(rounds or self.plan.rounds):
            for case, settings in cases:
                for peer in _rotated(self.peers, number):
                    cell = Cell(measure, case, peer.name, settings)
                    asked = among is None or among.get(peer.name) == settings
                    asked = asked and (needs is None or needs in peer.can)
                    if asked and self._wanted(peer, cell):
                        self._take(cell, number, partial(run, self, peer, case, settings))

    @contextlib.contextmanager
    def fresh_database(
        self, peer: Peer, template: str | None = None
    ) -> Iterator[tuple[str, ServerMeter]]:
        """A database with the peer's schema, empty or as `template`: its URL, a meter for it."""
        self.postgres.create(DATABASE, template or _template(peer))
        self.postgres.checkpoint()
        meter = ServerMeter(self.postgres, DATABASE)
        try:
            yield self.postgres.url(DATABASE), meter
        finally:
            meter.close()
            self.postgres.drop(DATABASE)

    def count(self, peer: Peer, wanted: int, settings: Settings) -> int:
        """How many executions to queue for this peer, which may be slow."""
        if (most := peer.most.get(settings)) is None:
            return wanted
        return min(wanted, max(most // _BRIEFLY, _AT_LEAST) if self.plan.brief else most)

    def keep_as(self, template: str) -> None:
        """Keep a vacuumed copy of the present database, which nobody may be connected to."""
        with self.postgres.connect(DATABASE) as conn:
            conn.execute("vacuum analyze")
        self.postgres.create(template, DATABASE)

    def _wanted(self, peer: Peer, cell: Cell) -> bool:
        return (
            peer.name not in self._broken
            and cell not in self.failures
            and peer.takes_part(cell.measure, cell.case, cell.settings)
        )

    def _take(self, cell: Cell, number: int, run: Callable[[], Mapping[str, float | None]]) -> None:
        title = f"{cell.measure} {cell.case} {cell.peer} {cell.settings}"
        say(f"round {number + 1}/{self.plan.rounds}: {' '.join(title.split())}")
        try:
            self.samples.append(Sample(cell, number, run()))
        except (PeerFailed, OSError, psycopg.Error) as error:
            self._note(cell, error)

    def _note(self, cell: Cell, error: Exception) -> None:
        self.failures[cell] = str(error)
        say(f"FAILED: {error}")


def say(words: str) -> None:
    """Progress, on stderr: stdout is the report's."""
    print(words, file=sys.stderr, flush=True)


def _template(peer: Peer) -> str:
    return f"template_{peer.name}".replace("-", "_")


def _rotated(peers: Sequence[Peer], by: int) -> Sequence[Peer]:
    start = by % len(peers)
    return [*peers[start:], *peers[:start]]
