"""One seed: servers, clients, a while of chaos, then calm; and whether every promise was kept."""

from __future__ import annotations

import logging
import random
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from conductor_cli import (
    catalog,
    entropy,
    holding,
    leadership,
    pump,
    scheduler,
    service,
    signals,
    telemetry,
)
from conductor_cli.models import ScheduleSpec
from conductor_cli.store import definitions
from tests.support.interleaving import audit
from tests.support.interleaving.cast import QUEUE, TASKS, Client, Server, Told, echo
from tests.support.interleaving.net import EPOCH, Sessions
from tests.support.interleaving.stage import Stage
from tests.support.statements import all_statements

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    import pytest

    from conductor_cli.database import Database

EVERY: Final = 6.0  # seconds from tick to tick
CHAOS: Final = 9.0
CALM: Final = 300.0
END_OF_TICKS: Final = """
    update conductor.schedules s set next_at = null from conductor.schedules before
    where before.task = s.task and s.next_at > conductor.now() returning before.next_at
"""
NOTHING_LEFT: Final = "select not exists (select from conductor.live)"
SCHEDULE: Final = ScheduleSpec(
    task="kept", name="often", queue=QUEUE, expression="*/6 * * * * *", timezone="UTC",
    missed="all", payload="{}",
)  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """What a seed is about.

    ``servers``, ``pumps``: how many, one of these by chance; ``trouble``, ``slowness``,
    ``lateness``: of a server's network; ``strikes``: how likely something befalls a server at a
    step; ``rush``: how many executions each client begins with; ``many``: see holding.MANY.
    """

    servers: Sequence[int] = (2, 2, 2, 3)
    pumps: Sequence[int] = (1, 1, 2)
    trouble: float = 0.05
    slowness: float = 0.15
    lateness: float = 0.0
    strikes: float = 0.03
    rush: int = 0
    many: int = holding.MANY


PLAIN: Final = Plot()
# One server whose pumps are both busy, and whose claims are often lost.
PUMPS: Final = Plot(
    servers=(1,),
    pumps=(2,),
    trouble=0.25,
    slowness=0.4,
    lateness=1.0,
    strikes=0.005,
    rush=12,
    many=1,
)


class Broken(AssertionError):
    """A promise was broken; says which, and everything that led to it."""


@dataclass
class Clock:
    """The stage's time, in place of the module ``time``."""

    stage: Stage

    def monotonic(self) -> float:
        return self.stage.now

    def time(self) -> float:
        return self.stage.now

    def sleep(self, seconds: float) -> None:
        self.stage.wait(seconds)


@dataclass
class Theatre:
    """Where seeds are played, one after the other, on one database."""

    sessions: Sessions
    clock: Clock
    plot: Plot
    chance: random.Random

    def play(self, seed: int) -> Drama:
        """Raises Broken."""
        drama = Drama(seed, self.sessions, self.plot)
        self.chance.seed(seed)
        self.clock.stage = drama.stage
        undo = telemetry.subscribe(drama.hear)
        try:
            drama.play()
        finally:
            undo()
            drama.stage.kill()
        return drama


@contextmanager
def opened(database: Database, patch: pytest.MonkeyPatch, plot: Plot = PLAIN) -> Iterator[Theatre]:
    """Make a database fit for it, and let the services go by the stage's time."""
    clock = Clock(Stage(0))
    for room in (holding, leadership, pump, scheduler, service, signals):
        patch.setattr(room, "time", clock)
    chance = random.Random()  # in place of the operating system, so that a seed can be replayed
    patch.setattr(entropy, "bits", chance.getrandbits)
    patch.setattr(entropy, "uniform", chance.uniform)
    patch.setattr(holding, "MANY", plot.many)
    patch.setattr(logging.getLogger("conductor"), "disabled", True)
    with database.connect("setup") as conn:
        conn.execute(audit.SETUP.encode())
        conn.execute("select set_config('test.now', %s, false)", [EPOCH.isoformat()])
        tasks = catalog.task_specs(QUEUE, TASKS, completed=86400.0, failed=86400.0)
        definitions.register_tasks(conn, tasks)
    names = {statement.sql: name for name, statement in all_statements().items()}
    sessions = Sessions(lambda: database.connect("stage"), names)
    try:
        yield Theatre(sessions, clock, plot, chance)
    finally:
        sessions.close()


class Drama:
    def __init__(self, seed: int, sessions: Sessions, plot: Plot) -> None:
        self.seed = seed
        self._plot = plot
        self.stage = Stage(seed)
        self.told = Told()
        self._sessions = sessions
        self._servers: dict[str, Server] = {}
        self._alive: list[Server] = []
        self._clients: list[Client] = []
        self._broken: list[str] = []
        self._next_tick: datetime | None = None  # the first that is not made any more

    def play(self) -> None:
        self._set_the_stage()
        try:
            self._chaos()
            self._calm()
        except Exception as error:
            self._broken.append(f"{type(error).__name__}: {error}")
        self.stage.kill()
        self._judge()

    def hear(self, event: str, count: int, fields: Mapping[str, Any]) -> None:
        """An event of telemetry."""
        who = self.stage.current
        if event == "executions.stale" and who is not None:
            self.told.stale.append((UUID(fields["execution"]), fields["run"], who.group))
        if event != "executions.finished":
            self.stage.note(event, fields)

    def _set_the_stage(self) -> None:
        first = self._sessions.first
        self._sessions.command(first, audit.CLEAR)
        self._sessions.dress(first, self.stage.now, "-")
        definitions.save_schedules(first, [(SCHEDULE, EPOCH + timedelta(seconds=EVERY))], ["kept"])
        for _ in range(self.stage.chance.choice(self._plot.servers)):
            self._start_server()
        for n in range(2):
            client = Client(self.stage, self._sessions, f"client{n}", self.told, self._hint)
            client.net.trouble, client.net.slowness = 0.06, 0.1
            client.rush = self._plot.rush
            self._clients.append(client)

    def _start_server(self) -> None:
        name = f"s{len(self._servers)}"
        server = Server(self.stage, self._sessions, name, self.told, self._plot.pumps)
        server.net.trouble = self._plot.trouble
        server.net.slowness = self._plot.slowness
        server.net.lateness = self._plot.lateness
        server.zombie = self.stage.chance.random() < 0.2
        self._servers[name] = server
        self._alive.append(server)

    def _chaos(self) -> None:
        end = self.stage.now + CHAOS
        while self.stage.now < end:
            if self._alive and self.stage.chance.random() < self._plot.strikes:
                self._strike(self.stage.chance.choice(self._alive))
            self._step()

    def _strike(self, server: Server) -> None:
        chance = self.stage.chance
        match chance.choice(["kill", "freeze", "echo", "echo", "stop", "time"]):
            case "kill":
                self.stage.note("killed", server.name)
                self._alive.remove(server)
                self.stage.kill(server.name)
            case "freeze":
                seconds = chance.choice([2.0, 6.5, 9.0])
                self.stage.note("frozen", (server.name, seconds))
                self.stage.freeze(server.name, seconds)
            case "echo":
                echo(self.stage, server)
            case "stop":
                self._alive.remove(server)
                server.retire()
            case "time":
                self.stage.now += chance.choice([0.2, 1.0, 2.0])
        if not self._alive:
            self._start_server()

    def _calm(self) -> None:
        """No more faults: everything that was asked for comes to its end."""
        self.stage.is_calm = True
        self.stage.thaw()
        for net in [each.net for each in (*self._servers.values(), *self._clients)]:
            net.trouble = net.slowness = 0.0
        end = self.stage.now + CALM
        while self.stage.now < end:
            for _ in range(20):
                self._step()
            if all(c.fiber.has_ended for c in self._clients) and self._is_over():
                return
        self._broken.append("after a long calm there is work left")

    def _is_over(self) -> bool:
        """Every tick so far has been made (then there are no more), and nothing is left."""
        self._sessions.dress(self._sessions.first, self.stage.now, "-")
        if self._next_tick is None:
            row = self._sessions.first.execute(END_OF_TICKS, prepare=True).fetchone()
            self._next_tick = row[0] if row is not None else None
        row = self._sessions.first.execute(NOTHING_LEFT, prepare=True).fetchone()
        return row == (True,) and self._next_tick is not None

    def _step(self) -> None:
        self.stage.step()
        leaders = [s.name for s in self._alive if s.leadership.is_leader]
        if len(leaders) > 1:
            self._broken.append(f"two trust that they lead: {leaders}")
            raise RuntimeError("two leaders")

    def _hint(self) -> None:
        """A notification, heard by some."""
        for server in self._alive:
            if self.stage.chance.random() < 0.5:
                server.holding.ready()
            if self.stage.chance.random() < 0.2:
                server.holding.due()

    def _judge(self) -> None:
        servers: dict[str, UUID] = {name: server.id for name, server in self._servers.items()}
        verdict = audit.Verdict(self.told, servers, audit.facts(self._sessions.first))
        verdict.broken += self._broken
        if self._next_tick is None:
            verdict.breach("the schedule stands still")
        else:
            audit.judge_ticks(verdict, EPOCH + timedelta(seconds=EVERY), self._next_tick, EVERY)
        for id, life in verdict.lives.items():
            if not life.has_ended:
                verdict.breach("lost: it has not ended", id)
        if verdict.broken:
            raise Broken("\n".join([f"seed {self.seed}", *verdict.broken, "", self.stage.story()]))
