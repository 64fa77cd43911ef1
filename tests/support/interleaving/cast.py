"""Who acts: servers made of the package's own services, and clients that know what they asked.

A server's pumps, books, heartbeat, lease, rescuer and scheduler are the real ones, driven as their
threads would drive them. Only the slots are played: they take from the inbox and leave outcomes.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import psycopg

from conductor_cli.catalog import TaskSet
from conductor_cli.config import WorkerConfig
from conductor_cli.database import is_transient
from conductor_cli.holding import Finished, Holding, SuspectLane
from conductor_cli.leadership import Leadership
from conductor_cli.maintenance import Rescuer
from conductor_cli.models import (
    Cancelled,
    Claimed,
    Completed,
    ExecutionError,
    Failed,
    HandedBack,
    Outcome,
    Retrying,
    is_suspect,
)
from conductor_cli.pump import Pump, Recorded, Retention
from conductor_cli.registry import task
from conductor_cli.scheduler import JobScheduler
from conductor_cli.signals import Beaten, Heartbeat, Identity
from conductor_cli.store import executions
from tests.support.interleaving.net import Net, moment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conductor_cli.service import PeriodicService, Service
    from tests.support.interleaving.net import Sessions
    from tests.support.interleaving.stage import Stage

INTERVAL, TIMEOUT = 2.5, 6.0
SLOTS: Final = 2
QUEUE: Final = "default"


@task
def kept() -> None:
    """Its result is kept."""


@task(retain_completed=0, retain_failed=0, max_crashes=1)
def fleeting() -> None:
    """Nothing of it is kept."""


TASKS: Final = TaskSet([kept, fleeting])


@dataclass
class Told:
    """What servers and clients were told, to be held against what is so."""

    invoked: dict[UUID, str] = field(default_factory=dict)  # sent, done, undone, met
    resent: set[UUID] = field(default_factory=set)
    met: list[UUID] = field(default_factory=list)
    cancelled: Counter[UUID] = field(default_factory=Counter)
    retried: Counter[UUID] = field(default_factory=Counter)
    recorded: Counter[UUID] = field(default_factory=Counter)
    stale: list[tuple[UUID, int, str]] = field(default_factory=list)  # id, run, server
    started: list[tuple[Claimed, str, float]] = field(default_factory=list)


class Server:
    """One server process."""

    def __init__(
        self, stage: Stage, sessions: Sessions, name: str, told: Told, pumps: Sequence[int]
    ) -> None:
        self.name, self.id = name, UUID(int=stage.chance.getrandbits(128), version=4)
        self.net = Net(stage, sessions, name)
        self.zombie = False  # its scheduler takes no notice of the end of its term
        self._stage, self._told = stage, told
        self._running: dict[int, tuple[Claimed, float]] = {}
        lane = SuspectLane()
        config = WorkerConfig(concurrency=SLOTS, poll_interval=8.0)
        self.holding = Holding(config, lambda: False, _is_suspect, lane)
        self._pumps = [self._pump(n) for n in range(1, stage.chance.choice(pumps) + 1)]
        self.holding.wakers = [self._pumps[0].wake, self._pumps[-1].wake]
        self._rescuer = Rescuer(self.net, on_death=_ignore)
        self._scheduler = JobScheduler(self.net, on_death=_ignore)
        self.leadership = Leadership(
            self.net, self.id, lease=TIMEOUT, services=list, on_death=_ignore
        )
        self._heartbeat = Heartbeat(
            self.net, Identity(self.id, "1", "here", 1, [QUEUE]),
            interval=INTERVAL, timeout=TIMEOUT, stand=self.leadership.stand,
            hear=self._hear, on_dead=lambda: self.holding.give_back_unstarted(None),
            on_death=_ignore,
        )  # fmt: skip
        stage.spawn(f"{name}.heartbeat", name, self._start)

    def retire(self) -> None:
        """Stop it as SIGTERM does."""
        self._stage.spawn(f"{self.name}.stop", self.name, self._stop)

    def _start(self) -> None:
        self._insistently(self._heartbeat.setup)
        lead = self._scheduler, self._may_schedule
        services: list[tuple[PeriodicService, Callable[[], bool]]] = [
            *((pump, _always) for pump in self._pumps),
            (self._rescuer, _always), (self.leadership, _always), lead,
        ]  # fmt: skip
        for service, may in services:
            self._stage.spawn(
                f"{self.name}.{service.name}", self.name,
                lambda service=service, may=may: self._drive(service, may),
            )  # fmt: skip
        for n in range(SLOTS):
            self._stage.spawn(f"{self.name}.slot{n}", self.name, lambda n=n: self._slot(n))
        self._drive(self._heartbeat, _always)

    def _drive(self, service: PeriodicService, may: Callable[[], bool]) -> None:
        while not service._stopping.is_set():
            if not may():
                self._stage.wait(1e9, unless=may)
            pause = service._round()
            self._stage.wait(pause, unless=service._awake.is_set)
            service._awake.clear()

    def _may_schedule(self) -> bool:
        return self.zombie or self.leadership._running is not None

    def _slot(self, number: int) -> None:
        inbox, chance = self.holding.inbox, self._stage.chance
        while True:
            self._stage.wait(1e9, unless=lambda: not inbox.empty())
            try:
                claimed = inbox.get_nowait()
            except Empty:  # given back, or the other slot was quicker
                continue
            assert claimed is not None
            self.holding.last_start = began = self._stage.now
            self._told.started.append((claimed, self.name, began))
            self._stage.note("runs", claimed.id)
            seconds = 0.0 if self._stage.is_calm else chance.choice([0.0, 0.1, 1.0, 3.0])
            self._stage.wait(seconds, unless=lambda: not self.holding.is_claiming)
            outcome = self._outcome(claimed)
            self._stage.note("has run", (claimed.id, outcome))
            self.holding.finish(Finished(claimed, outcome, self._stage.now - began))
            self._pumps[-1].wake()  # under load all of them are at it

    def _outcome(self, claimed: Claimed) -> Outcome:
        if not self.holding.is_claiming:
            return HandedBack(0.0)
        chance = self._stage.chance
        error = ExecutionError("ValueError", str(claimed.token))
        kind = chance.random()
        if kind < 0.65:
            return Completed(json.dumps(str(claimed.token)))
        if kind < 0.85 and claimed.failures < 2:
            return Retrying(chance.choice([0.0, 0.0, 0.5, 2.0]), error, chance.random() < 0.7)
        return Failed(error) if kind < 0.95 else Cancelled("enough")

    def _stop(self) -> None:
        self._heartbeat.is_stopping = True
        self.leadership.stop()
        self.leadership.teardown()
        self._rescuer.stop()
        self._scheduler.stop()
        self.holding.stop_claiming()
        self._stage.wait(10.0, unless=lambda: not self.holding.in_hand)
        for service in (*self._pumps, self._heartbeat):
            service.stop()
        self._heartbeat.teardown()

    def _hear(self, beaten: Beaten) -> None:
        self.leadership.hear(beaten)
        if beaten.may_judge and (beaten.pulse.look_in or 1.0) <= 0:
            self._rescuer.judge()

    def _insistently(self, work: Callable[[], None]) -> None:
        while True:
            try:
                return work()
            except psycopg.Error as error:
                if not is_transient(error):
                    raise
                self._heartbeat.recover()
                self._stage.wait(1.0)

    def _pump(self, number: int) -> Pump:
        return Pump(
            f"pump{number}", queue=QUEUE, tasks=TASKS, holding=self.holding, database=self.net,
            owner=self.id, retention=Retention(86400.0, 86400.0), on_recorded=self._recorded,
            on_death=_ignore,
        )  # fmt: skip

    def _recorded(self, recorded: Recorded) -> None:
        self._told.recorded[recorded.id] += 1


class Client:
    """A program that invokes, cancels and retries, and believes what it is told."""

    def __init__(
        self, stage: Stage, sessions: Sessions, name: str, told: Told, hint: Callable[[], None]
    ) -> None:
        self.net = Net(stage, sessions, name)
        self._stage, self._told, self._hint = stage, told, hint
        self.rush = 0
        self.fiber = stage.spawn(name, name, self._act)

    def _act(self) -> None:
        chance = self._stage.chance
        acts = [self._invoke] * 4 + [self._invoke_in_transaction] * 2
        acts += [self._cancel] * 3 + [self._retry] * 2
        if self.rush:
            self._invoke_many(self.rush)
        for _ in range(chance.randint(2, 4)):
            self._stage.wait(chance.choice([0.0, 0.3, 1.0, 2.0]))
            try:
                chance.choice(acts)()
            except psycopg.Error as error:
                if not is_transient(error):
                    raise
                self._stage.note("gave up", error)
            self._hint()

    def _spec(self) -> tuple[UUID, dict[str, Any]]:
        chance = self._stage.chance
        id = UUID(int=chance.getrandbits(128), version=4)
        spec: dict[str, Any] = {
            "id": str(id), "task": chance.choice(["kept", "kept", "fleeting"]), "queue": QUEUE,
            "rank": chance.randint(-1, 1), "payload": {},
        }  # fmt: skip
        if chance.random() < 0.3:
            spec["run_at"] = moment(self._stage.now + chance.choice([1.0, 4.0])).isoformat()
        if chance.random() < 0.4:
            spec["dedupe_key"] = chance.choice("ab")
            spec["on_duplicate"] = chance.choice(["return", "replace"])
        return id, spec

    def _invoke(self) -> None:
        id, spec = self._spec()
        self._told.invoked[id] = "sent"
        for again in (False, True, True, True):
            try:
                with self.net.connection() as conn:
                    self._answered(id, self._send(conn, id, spec, again))
                return
            except psycopg.Error as error:
                if not is_transient(error):
                    raise
            self._told.resent.add(id)
            self._stage.wait(1.0)

    def _send(self, conn: Any, id: UUID, spec: dict[str, Any], again: bool) -> list[executions.Met]:
        if again or spec.keys() & {"run_at", "dedupe_key"}:
            return executions.enqueue(conn, json.dumps([spec]), recheck=again)
        given = {"task": spec["task"], "queue": QUEUE, "rank": spec["rank"]}
        if id.int % 2:
            executions.enqueue_one(conn, id, "{}", **given)
        else:
            executions.enqueue_plain(conn, [id], ["{}"], **given)
        return []

    def _answered(self, id: UUID, met: list[executions.Met]) -> None:
        self._told.invoked[id] = "met" if met else "done"
        self._told.met += [each.met for each in met]

    def _invoke_many(self, count: int) -> None:
        """A pile of work, so that a server's pumps are all busy for a while."""
        specs: dict[UUID, dict[str, Any]] = {}
        for _ in range(count):
            id = UUID(int=self._stage.chance.getrandbits(128), version=4)
            specs[id] = {"id": str(id), "task": "kept", "queue": QUEUE, "rank": 0, "payload": {}}
            self._told.invoked[id] = "sent"
        with suppress(psycopg.OperationalError), self.net.connection() as conn:
            executions.enqueue(conn, json.dumps(list(specs.values())), recheck=False)
            self._told.invoked.update(dict.fromkeys(specs, "done"))
        self._hint()

    def _invoke_in_transaction(self) -> None:
        id, spec = self._spec()
        self._told.invoked[id] = "undone"
        with suppress(_ChangedItsMind), self.net.transaction() as conn:
            met = self._send(conn, id, spec, False)
            self._stage.wait(self._stage.chance.choice([0.0, 1.0, 3.0]))
            if self._stage.chance.random() < 0.3:
                raise _ChangedItsMind
            self._told.invoked[id] = "sent"
        if self._told.invoked[id] == "sent":
            self._answered(id, met)

    def _cancel(self) -> None:
        id = self._some_id()
        with self.net.transaction() as conn:
            done = executions.cancel(conn, id, "enough")
            self._stage.wait(self._stage.chance.choice([0.0, 0.0, 2.0]))
        self._told.cancelled[id] += done

    def _retry(self) -> None:
        id = self._some_id()
        with self.net.transaction() as conn:
            done = executions.retry(conn, id)
            self._stage.wait(self._stage.chance.choice([0.0, 0.0, 2.0]))
        self._told.retried[id] += done

    def _some_id(self) -> UUID:
        return self._stage.chance.choice([*self._told.invoked, UUID(int=0)])


def echo(stage: Stage, server: Server) -> None:
    """Let the network deliver a message of this server, sent before, once more."""
    if server.net.sent:
        message = stage.chance.choice(server.net.sent)
        stage.spawn(f"{server.name}.echo", "network", lambda: server.net.send(message))


class _ChangedItsMind(Exception):
    pass


def _is_suspect(claimed: Claimed) -> bool:
    return is_suspect(claimed.crashes, TASKS.named(claimed.task).settings.max_crashes)


def _always() -> bool:
    return True


def _ignore(_service: Service, _error: BaseException) -> None:
    """The stage hears of it itself."""
