"""The evidence: every change of a row, taken down by triggers; and what must be true of it.

The states an execution goes through are judged by a second, independent telling of the rules.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from conductor_cli.database import Connection
    from tests.support.interleaving.cast import Told

SETUP: Final = """
    create or replace function conductor.now() returns timestamptz
        language sql stable parallel safe return current_setting('test.now')::timestamptz;
    create sequence public.uuids;
    create or replace function conductor.uuid7() returns uuid language sql volatile
        return lpad(to_hex(nextval('public.uuids')), 32, '0')::uuid;

    create table public.evidence (
        n bigint generated always as identity, tx bigint default pg_current_xact_id()::text::bigint,
        seen text default pg_current_snapshot()::text, at timestamptz default conductor.now(),
        who text default current_setting('test.actor'), what text, id uuid, state text,
        token bigint, owner uuid, runs int, failures int, crashes int, flags int,
        run_at timestamptz, task text, more text
    ) with (autovacuum_enabled = false);

    create function public.on_live() returns trigger language plpgsql as $$
    declare r conductor.live := case tg_op when 'DELETE' then old else new end;
    begin
        insert into public.evidence
            (what, id, state, token, owner, runs, failures, crashes, flags, run_at, task, more)
        values ('live ' || tg_op, r.id, r.state, r.token, r.owner, r.runs, r.failures,
            r.crashes, r.flags & 1, r.run_at, r.task, r.event ->> 'scheduled_for');
        return null;
    end $$;
    create function public.on_history() returns trigger language plpgsql as $$
    declare r conductor.history := case tg_op when 'DELETE' then old else new end;
    begin
        insert into public.evidence
            (what, id, state, token, runs, failures, crashes, task, more)
        values ('history ' || tg_op, r.id, r.state, r.token, r.runs, r.failures, r.crashes,
            r.task, r.result #>> '{}');
        return null;
    end $$;
    create function public.on_fleet() returns trigger language plpgsql as $$
    begin
        insert into public.evidence (what, id, run_at)
        values ('server ' || tg_op, coalesce(new.id, old.id),
            old.beat_at + old.timeout * interval '1 second');
        return null;
    end $$;
    create trigger evidence after insert or update or delete on conductor.live
        for each row execute function public.on_live();
    create trigger evidence after insert or delete on conductor.history
        for each row execute function public.on_history();
    create trigger evidence after insert or delete on conductor.orchestrators
        for each row execute function public.on_fleet();
    alter table conductor.live set (autovacuum_enabled = false)
"""
CLEAR: Final = """
    delete from conductor.live; delete from conductor.history; delete from conductor.schedules;
    delete from conductor.orchestrators; delete from conductor.leadership;
    truncate public.evidence; alter sequence public.uuids restart
"""


class Fact(NamedTuple):
    """One change of one row. ``seen``: the snapshot in which it was made."""

    n: int
    tx: int
    seen: str
    at: datetime
    who: str
    what: str
    id: UUID
    state: str
    token: int | None
    owner: UUID | None
    runs: int
    failures: int
    crashes: int
    flags: int  # 1: cancel asked
    run_at: datetime | None
    task: str
    more: str | None

    @property
    def server(self) -> str:
        """The server that did it, by its name."""
        return self.who.partition(".")[0]

    @property
    def declares_dead(self) -> bool:
        """Whether it ends a server that did not stop by itself."""
        return self.what == "server DELETE" and not self.who.endswith(".stop")

    def sees(self, other: Fact) -> bool:
        """Whether the other change was committed when this one was made, or made along with it."""
        _, below, running = self.seen.split(":")
        visible = other.tx < int(below) and str(other.tx) not in running.split(",")
        return visible or other.tx == self.tx


def facts(conn: Connection) -> list[Fact]:
    """All of them, in order."""
    rows = conn.execute("select * from public.evidence order by n").fetchall()
    return [Fact(*row) for row in rows]


class Verdict:
    """What was broken, in words."""

    def __init__(self, told: Told, servers: dict[str, UUID], found: Sequence[Fact]) -> None:
        self.broken: list[str] = []
        self._told, self._servers = told, servers
        self._fleet = [f for f in found if f.what.startswith("server")]
        self.lives: dict[UUID, Life] = {}
        by_id: defaultdict[UUID, list[Fact]] = defaultdict(list)
        for fact in found:
            if not fact.what.startswith("server"):
                by_id[fact.id].append(fact)
        for id, of_one in by_id.items():
            self.lives[id] = life = Life(self)
            for _, changes in groupby(of_one, key=lambda f: f.tx):
                life.follow(list(changes))
        self._judge_fleet()
        self._judge_what_was_told()

    def breach(self, what: str, *about: object) -> None:
        self.broken.append(f"{what}: {' | '.join(map(str, about))}")

    def is_in_fleet(self, server: UUID | None, fact: Fact) -> bool:
        known = [f for f in self._fleet if f.id == server and fact.sees(f)]
        return bool(known) and known[-1].what == "server INSERT"

    def was_sent_again(self, id: UUID) -> bool:
        return id in self._told.resent

    def is_by(self, owner: UUID | None, fact: Fact) -> bool:
        """Whether the owner itself did it."""
        return self._servers.get(fact.server) == owner

    def _judge_fleet(self) -> None:
        for fact in self._fleet:
            if fact.declares_dead:
                assert fact.run_at is not None
                if fact.at < fact.run_at:
                    self.breach("buried alive", fact)

    def _judge_what_was_told(self) -> None:
        for id, how in self._told.invoked.items():
            if how == "done" and id not in self.lives:
                self.breach("lost: invoked and never there", id)
            if how in ("undone", "met") and id in self.lives:
                self.breach(f"a ghost: {how} and there", id)
        for id in self.lives.keys() - self._told.invoked.keys():
            if not self.lives[id].is_tick:
                self.breach("a ghost: nobody invoked it", id)
        for id in self._told.met:
            if id not in self.lives:
                self.breach("met one that was never there", id)
        nothing = Life(self)
        for what, counts, of in (
            ("more results accepted than there are ends", self._told.recorded, "ends"),
            ("told of a cancel that did nothing", self._told.cancelled, "cancels"),
            ("told of a retry that did nothing", self._told.retried, "retries"),
        ):
            for id, count in counts.items():
                if count > getattr(self.lives.get(id, nothing), of):
                    self.breach(what, id, count)
        for id, attempt, server in self._told.stale:
            self._judge_stale(id, attempt, server)
        for claimed, server, _ in self._told.started:
            life = self.lives.get(claimed.id, nothing)
            if life.claims.get(claimed.token) != self._servers[server]:
                self.breach("ran what it had not claimed", claimed, server)
            if claimed.token in life.taken_back:
                self.breach("taken back by its own server, which ran it", claimed, server)

    def _judge_stale(self, id: UUID, attempt: int, server: str) -> None:
        """A server loses a claim only by being declared dead.

        Or it settled it, did not hear so, and by now another has claimed it, or it has been
        retried, or (of what is not kept) nothing is left: then it counts as stale, which it is
        not, and no harm is done.
        """
        life, owner = self.lives.get(id), self._servers[server]
        if life is not None and (owner, attempt) in life.settled:
            return
        if not any(f.declares_dead and f.id == owner for f in self._fleet):
            self.breach("a living server lost its claim", id, attempt, server)


class Life:
    """One execution, from evidence alone."""

    def __init__(self, verdict: Verdict) -> None:
        self.claims: dict[int, UUID] = {}
        self.settled: set[tuple[UUID | None, int]] = set()  # by whom, in which attempt
        self.taken_back: set[int | None] = set()  # tokens of claims whose reply was lost
        self.ends = self.cancels = self.retries = 0
        self.is_tick = False
        self.task = ""
        self.scheduled_for = ""
        self.has_ended = False
        self._attempts = 0  # when it ended
        self._verdict = verdict
        self._live: Fact | None = None
        self._last: Fact | None = None

    def follow(self, changes: Sequence[Fact]) -> None:
        """What one transaction did to it."""
        whats = Counter(change.what for change in changes)
        for change in changes:
            match change.what:
                case "live INSERT":
                    self._appears(change, again="history DELETE" in whats)
                case "live UPDATE":
                    self._changes(change)
                case "live DELETE":
                    self._live = None
        ended = [change for change in changes if change.what == "history INSERT"]
        if ended and "live DELETE" in whats:
            self._ends(ended[-1])
        elif ended:
            self._breach("an end out of nothing", ended)
        elif "live DELETE" in whats and self._last is not None:
            self._vanishes([c for c in changes if c.what == "live DELETE"][-1])
        if len(ended) > 1:
            self._breach("ended twice at once", *ended)

    def _breach(self, what: str, *about: object) -> None:
        self._verdict.breach(what, *about)

    def _expect(self, true: bool, what: str, *about: object) -> None:
        if not true:
            self._breach(what, *about)

    def _appears(self, row: Fact, again: bool) -> None:
        if again:
            self.retries += 1
            self._expect(self.has_ended, "retried and had not ended", row)
            self._expect(row.runs == self._attempts, "a retry forgets attempts", row)
        else:
            self._expect(self._last is None or self._is_forgotten(row), "runs again", row)
            self._expect(row.runs == 0, "born with attempts", row)
            self.is_tick, self.task = row.more is not None, row.task
            self.scheduled_for = row.more or ""
        self._expect((row.failures, row.crashes, row.flags) == (0, 0, 0), "born spent", row)
        self._expect(self._live is None, "there twice", row)
        self._live = self._last = row
        self.has_ended = False

    def _is_forgotten(self, row: Fact) -> bool:
        """Of what is not kept nothing is left by which a second try of its client, whose first
        reply was lost, could be recognised."""
        return row.task == "fleeting" and self.has_ended and self._verdict.was_sent_again(row.id)

    def _changes(self, row: Fact) -> None:
        old, self._live, self._last = self._last, row, row
        assert old is not None
        match old.state, row.state:
            case "r", "x":
                self._claimed(old, row)
            case "x", "x":
                self._expect(row.token == old.token, "running under another token", old, row)
                self._expect(row.flags >= old.flags, "a cancel withdrawn", old, row)
                self.cancels += row.flags - old.flags
            case "x", ("r" | "s"):
                self._given_back(old, row)
            case "s", "r":
                is_due = old.run_at is not None and row.at >= old.run_at
                replaced = row.run_at != old.run_at
                self._expect(is_due or replaced, "ready before its time", old, row)
            case (("r" | "s"), ("r" | "s")):
                self._expect(_counts(old) == _counts(row), "counted while pending", old, row)
            case _:
                self._breach("a move that does not exist", old, row)

    def _claimed(self, old: Fact, row: Fact) -> None:
        assert row.token is not None
        assert row.owner is not None
        self._expect(row.token not in self.claims, "an old token once more", old, row)
        self._expect(self._verdict.is_by(row.owner, row), "claimed for somebody else", old, row)
        self._expect(
            _counts(row) == (old.runs + 1, old.failures, old.crashes), "miscounted", old, row
        )
        self.claims[row.token] = row.owner

    def _given_back(self, old: Fact, row: Fact) -> None:
        self._expect(old.flags == 0, "given back although it is to be cancelled", old, row)
        self._expect(row.owner is None, "given back and still owned", old, row)
        attempts, failures, crashes = (
            new - before for new, before in zip(_counts(row), _counts(old), strict=True)
        )
        mine = self._verdict.is_by(old.owner, row)
        if mine and (attempts, failures, crashes) in ((0, 0, 0), (0, 1, 0), (-1, 0, 0)):
            self.settled.add((old.owner, old.runs))
            if row.token is None and not row.who.endswith(".stop"):
                self.taken_back.add(old.token)
            return
        self._expect(
            not self._verdict.is_in_fleet(old.owner, row), "taken from the living", old, row
        )
        self._expect(row.token is None, "rescued under its old token", old, row)
        self._expect((attempts, failures) == (0, 0), "miscounted", old, row)
        self._expect(crashes in (0, 1), "miscounted", old, row)

    def _ends(self, end: Fact) -> None:
        gone = self._last
        assert gone is not None
        self._end(gone)
        attempts, failures, crashes = (
            new - before for new, before in zip(_counts(end), _counts(gone), strict=True)
        )
        self._expect(attempts == 0, "miscounted", gone, end)
        if gone.flags:
            self._expect(end.state == "k", "was to be cancelled", gone, end)
        if gone.state != "x":
            self._expect(end.state == "k", "ended and had not run", gone, end)
            self._expect((failures, crashes) == (0, 0), "miscounted", gone, end)
            self.cancels += 1
        elif self._verdict.is_by(gone.owner, end) and crashes == 0:
            if end.state != "k":
                self._expect(end.token == gone.token, "ended by another token", gone, end)
            self._expect(failures in (0, 1), "miscounted", gone, end)
        else:
            dead = not self._verdict.is_in_fleet(gone.owner, end)
            self._expect(dead, "ended by somebody else", gone, end)
            self._expect(end.token is None, "ended by somebody else with its token", gone, end)
            self._expect(failures == 0, "miscounted", gone, end)
            self._expect(crashes == (end.state == "f"), "miscounted", gone, end)
            self._expect(end.state != "c", "a result out of nothing", gone, end)
        if end.state == "c":
            self._expect(end.more == str(gone.token), "a late result accepted", gone, end)

    def _vanishes(self, row: Fact) -> None:
        self._end(row)
        self._expect(row.task == "fleeting", "vanished", row)
        self.cancels += row.flags or row.state != "x"

    def _end(self, gone: Fact) -> None:
        self.settled.add((gone.owner, gone.runs))
        self.ends += 1
        self.has_ended, self._attempts = True, gone.runs


def _counts(row: Fact) -> tuple[int, int, int]:
    return row.runs, row.failures, row.crashes


def judge_ticks(verdict: Verdict, first: datetime, beyond: datetime, every: float) -> None:
    """Each tick from ``first`` to before ``beyond`` was made exactly once, and no other."""
    count = round((beyond - first).total_seconds() / every)
    due = [first.timestamp() + n * every for n in range(count)]
    ticks = [life.scheduled_for for life in verdict.lives.values() if life.is_tick]
    _compare(verdict, due, Counter(datetime.fromisoformat(tick).timestamp() for tick in ticks))


def _compare(verdict: Verdict, due: Iterable[float], there: Counter[float]) -> None:
    for tick in due:
        if there[tick] != 1:
            verdict.breach("a tick that was not made exactly once", tick, there[tick])
    for tick in there.keys() - set(due):
        verdict.breach("a tick that is none", tick)
