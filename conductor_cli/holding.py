"""What one worker holds: claimed and not started, running, ended and not yet recorded.

The books between a worker's threads and its pumps. Threads only take from the inbox and append
to the outbox, both without a lock; whoever plans an exchange with the database takes one.

How much is claimed ahead follows from the measured rate, and from how long executions take: enough
for ``AHEAD`` seconds by both, so that fast tasks go through in large batches and slow ones are
not hoarded.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

import msgspec

from conductor_cli import entropy
from conductor_cli.models import Claimed, Completed, HandedBack, Outcome
from conductor_cli.store.claims import START, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from conductor_cli.config import WorkerConfig
    from conductor_cli.store.claims import Promoted

AHEAD: Final = 0.2  # seconds of work to hold
MOST_AHEAD: Final = 4000
PARTS: Final = 4  # in which that is claimed
BYTES_AHEAD: Final = 64 * 1024 * 1024  # of payloads, by the size of the last that came
BATCH: Final = 1000
BATCH_BYTES: Final = 4 * 1024 * 1024
MANY: Final = 100  # executions that are worth an exchange of their own
PLACE_HOLDS: Final = 1.0  # seconds for which the lower bound is trusted
LATE: Final = timedelta(seconds=0.1)  # by which most of what was invoked earlier comes later
WINDOW: Final = 0.02  # seconds over which the rate is measured
MEMORY: Final = 1000  # ended executions of which the mean duration is made
STALLED: Final = 2.0  # seconds after which what nobody starts is given back
TRUSTING_POLL: Final = 10.0  # the safety net's, while the listener is proven alive
DOUBT: Final = 15.0  # longer than a statement may take on the server
RECONCILE_EVERY: Final = 4.0
RECONCILE_LATER: Final = 60.0  # a claim stuck on its way may still arrive, whenever that ends
LOCKED_PAUSE: Final = 0.1
LANE_PAUSE: Final = 0.5  # for which a suspect is left to others while one runs here


class Finished(msgspec.Struct, frozen=True, gc=False):
    """How an attempt ended, and for how many seconds it ran.

    ``flagged``: its end concerns more than its row; ``recorded``: the database knows already.
    """

    claimed: Claimed
    outcome: Outcome
    seconds: float
    flagged: bool = False
    recorded: bool = False


class Plan(msgspec.Struct, frozen=True):
    """One exchange with the database: what to record, how many to claim, whether to look for
    due ones first, and whether to ask what the database thinks this worker runs.

    ``apart``: many are to be recorded and many claimed, and other servers claim as well. In one
    statement the claim would see what was there before it waited for theirs: it would lock what
    they have claimed meanwhile, and those who are to record it would wait for this one.
    """

    finished: list[Finished]
    limit: int
    apart: bool
    look: bool
    reconcile: bool
    token: int
    start: Place
    version: int


class SuspectLane:
    """Lets one suspect at a time, of all workers of a process, be run and recorded, so that the
    next crash is charged to it alone and not to others like it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: tuple[UUID, int] | None = None

    def admit(self, claimed: Claimed) -> bool:
        with self._lock:
            if self._holder is not None:
                return False
            self._holder = claimed.id, claimed.token
            return True

    def settle(self, claimed: Claimed) -> None:
        with self._lock:
            if self._holder == (claimed.id, claimed.token):
                self._holder = None


class Holding:
    """See the module. ``trusts_listener`` tells whether notifications can be relied on,
    ``is_suspect`` whether a claimed execution has to wait for the ``lane``."""

    def __init__(
        self,
        config: WorkerConfig,
        trusts_listener: Callable[[], bool],
        is_suspect: Callable[[Claimed], bool],
        lane: SuspectLane,
    ) -> None:
        self.inbox: SimpleQueue[Claimed | None] = SimpleQueue()
        self.last_start = time.monotonic()
        self.wakers: list[Callable[[], None]] = []
        self.servers = 1  # that share its queue, as far as is known
        self._config = config
        self._trusts_listener = trusts_listener
        self._is_suspect = is_suspect
        self._lane = lane
        self._outbox: deque[Finished] = deque()
        self._locked_out: deque[tuple[float, Finished]] = deque()
        self._lock = threading.Lock()
        self._claiming = True
        self._active = 0  # pumps at work; while one is, nobody need be woken
        self._taken = 0  # claimed, ever
        self._drained = 0  # planned to be recorded, ever
        self._reserved = 0  # being claimed
        self._tokens: Counter[int] = Counter()
        self._in_flight: set[int] = set()
        self._version = 1  # grows with every hint that there may be work
        self._dry = 0  # the version at which a claim found nothing more
        self._half_dry = False  # it had not looked from the very beginning
        self._hinted: dict[int, int] = {}  # by rank, the version of the latest hint
        self._start, self._start_until = START, 0.0
        self._look_at = 0.0
        self._next_at: float | None = None
        self._rate, self._measured_at, self._measured = 0.0, time.monotonic(), 0
        self._busy, self._ended = 0.0, 0  # seconds of the latest executions, and how many they are
        self._size = 0.0  # of a payload, in bytes, of the last claim
        self._doubt_until, self._reconcile_at = 0.0, math.inf
        self._flushed_at = 0.0
        self._stalled = False  # all threads are held by long tasks

    # The threads' side.

    def finish(self, finished: Finished) -> None:
        """Leave an outcome to be recorded."""
        self._outbox.append(finished)
        if not self._active:
            self.wakers[0]()

    # The listener's side.

    def ready(self, rank: int | None = None) -> None:
        """A hint that something can be claimed, at this rank."""
        with self._lock:
            self._version += 1
            self._hinted[START.rank if rank is None else rank] = self._version
            if rank is None or rank < self._start.rank:
                self._start = START
        self.wakers[0]()

    def due(self, at: float | None = None) -> None:
        """A hint that something is due at this moment (seconds since 1970, the database's)."""
        with self._lock:
            if at is not None and self._next_at is not None and at > self._next_at:
                return
            self._look_at = 0.0
        self.wakers[0]()

    # The pumps' side.

    def plan(self, was_active: bool) -> Plan | None:
        """What to do next, or None when there is nothing (more) for another pump to do.

        ``was_active``: the caller's last call returned a plan, which is done.
        """
        with self._lock:
            self._active -= was_active
            now = time.monotonic()
            self._give_back_stalled(now)
            if self._half_dry and now > self._start_until:
                self._half_dry = False
                self._version += 1
            look = self._claiming and self._look_at <= now
            limit = self._limit(look)
            reconcile = self._reconcile_at <= now
            waiting = len(self._outbox)
            if self._active and waiting < MANY and limit < MANY:
                return None
            # Results that wait to be recorded with others hold up nothing else: they go along with
            # whatever is to be done, and at a stop at once.
            waits = self._claiming and not (limit or look or reconcile) and now < self._flush_at()
            finished = [] if waits else self._drain(now)
            if not (finished or limit or look or reconcile):
                return None
            if look:
                self._look_at = now + self._poll()
            if reconcile:
                soon = now < self._doubt_until
                self._reconcile_at = now + (RECONCILE_EVERY if soon else RECONCILE_LATER)
            return self._planned(finished, limit, look, reconcile, now)

    def linger(self) -> float:
        """Seconds worth waiting for a larger batch; zero unless outcomes come thick and fast."""
        waiting = len(self._outbox)
        if self._config.flush_interval is not None:  # see plan()
            return 0.0
        running = self._taken - self._drained - waiting
        if self._rate < 2000 or waiting >= MANY or running <= MANY - waiting:
            return 0.0
        return min(0.003, (MANY - waiting) / self._rate)

    def pause(self) -> float:
        """Seconds until there may be something to do without being woken."""
        with self._lock:
            now = time.monotonic()
            moments = [self._look_at] if self._claiming else [now + 1.0]
            if not self.inbox.empty():
                moments.append(now + STALLED / 4)
            if self._locked_out:
                moments.append(self._locked_out[0][0])
            if self._half_dry:
                moments.append(self._start_until)
            moments.append(self._reconcile_at)
            if self._outbox:
                moments.append(self._flush_at())
            return max(0.001, min(moments) - now)

    def received(
        self, plan: Plan, claimed: Sequence[Claimed], spoilt: Sequence[Finished] = ()
    ) -> None:
        """The exchange is done: its outcomes are settled, and these are ours to run. ``spoilt``
        were claimed as well, and cannot be."""
        with self._lock:
            self._reserved -= plan.limit
            self._taken += len(claimed) + len(spoilt)
            self._in_flight.discard(plan.token)
            if claimed or spoilt:
                self._tokens[plan.token] = len(claimed) + len(spoilt)
            self._outbox.extend(spoilt)
            if claimed:
                self._size = sum([len(each.payload) for each in claimed]) / len(claimed)
            if spoilt:
                self._start, self._start_until = START, 0.0
                self._version += 1
            elif plan.limit:
                self._remember_place(plan, claimed)
            self._settle(plan.finished)
            if claimed and self.inbox.empty():
                self.last_start = time.monotonic()
            for each in claimed:
                if each.crashes and self._is_suspect(each) and not self._lane.admit(each):
                    self._outbox.append(Finished(each, HandedBack(LANE_PAUSE), 0.0))
                else:
                    self.inbox.put(each)
            if not self._claiming:  # a stop came while the reply was on its way
                self.give_back_unstarted()

    def failed(self, plan: Plan, waker: Callable[[], None], settled: Sequence[Finished]) -> None:
        """The exchange failed, or its reply was lost: keep the outcomes, doubt the claim.

        ``waker`` is that of the pump it failed in, which has to wait; another may be luckier.
        ``settled``: those that were recorded, or left for later, before it failed.
        """
        done = {id(each.claimed) for each in settled}
        kept = [each for each in plan.finished if id(each.claimed) not in done]
        with self._lock:
            self._active -= 1
            self._reserved -= plan.limit
            self._in_flight.discard(plan.token)
            self._drained -= len(kept)
            self._outbox.extendleft(reversed(kept))
            self._settle([each for each in plan.finished if id(each.claimed) in done])
            self._version += 1
            self._look_at = self._start_until = 0.0
            now = time.monotonic()
            if plan.limit:
                self._doubt_until, self._reconcile_at = now + DOUBT, now
        for other in self.wakers:
            if other != waker:
                other()

    def looked(self, promoted: Promoted, limit: int) -> None:
        """What promoting due executions brought, ``limit`` at most."""
        with self._lock:
            self._version += 1  # looking is also the safety net for lost hints
            self._next_at = promoted.next_at
            now = time.monotonic()
            if promoted.promoted:
                self._start = START
            if promoted.promoted == limit:
                self._look_at = now
            elif promoted.next_in is not None:
                self._look_at = min(self._look_at, now + promoted.next_in + 0.001)

    def again(self, finished: Finished) -> None:
        """Record this one again a little later: its row was locked by somebody else."""
        with self._lock:
            self._tokens[finished.claimed.token] += 1
            self._drained -= 1
            self._locked_out.append((time.monotonic() + LOCKED_PAUSE, finished))

    def known_tokens(self) -> list[int]:
        """The tokens of every claim this worker holds or is making."""
        with self._lock:
            return [*self._tokens, *self._in_flight]

    # The worker's side.

    def stop_claiming(self) -> None:
        """Claim no more, and give back what has not been started."""
        with self._lock:
            self._claiming = False
        self.give_back_unstarted()
        self.wakers[0]()

    def give_back_unstarted(self, ids: set[UUID] | None = None) -> None:
        """Hand back what is in the inbox, all or only these, their attempts not counted."""
        kept: list[Claimed | None] = []
        with suppress(Empty):
            while True:
                claimed = self.inbox.get_nowait()
                if claimed is None or (ids is not None and claimed.id not in ids):
                    kept.append(claimed)
                else:
                    self._outbox.append(Finished(claimed, HandedBack(0.0), 0.0))
        for each in kept:
            self.inbox.put(each)

    def end_threads(self, count: int) -> None:
        """Let so many threads end when they come for more."""
        for _ in range(count):
            self.inbox.put(None)

    @property
    def is_claiming(self) -> bool:
        return self._claiming

    @property
    def in_hand(self) -> int:
        """Claimed or being claimed, and not yet recorded."""
        with self._lock:
            return sum(self._tokens.values()) + self._reserved

    def _limit(self, look: bool) -> int:
        if not self._claiming or (self._version == self._dry and not look):
            return 0
        if self._in_flight and self.servers > 1:
            return 0  # claims at the same time walk over each other's rows; theirs are enough
        slots, held = self._config.concurrency, self._taken - self._drained
        target = slots + self._ahead()
        in_hand = held - len(self._outbox) - len(self._locked_out) + self._reserved
        room = target - in_hand
        if room <= 0 or (in_hand >= slots and room < target // PARTS):
            return 0
        return min(room, self._config.fetch_batch_size or MOST_AHEAD // PARTS)

    def _ahead(self) -> int:
        if self._stalled:
            return 0
        if self._config.fetch_batch_size is not None:
            return self._config.fetch_batch_size
        # Slow ones that happen to end at one moment look like a high rate for that moment.
        possible = self._config.concurrency * self._ended / max(self._busy, 1e-6)
        most = min(MOST_AHEAD, BYTES_AHEAD / max(self._size, 1.0))
        return int(min(most, AHEAD * min(self._rate, possible)))

    def _flush_at(self) -> float:
        """Until when results may wait to be recorded together."""
        return self._flushed_at + (self._config.flush_interval or 0.0)

    def _poll(self) -> float:
        trusting = TRUSTING_POLL if self._trusts_listener() else 0.0
        return max(self._config.poll_interval, trusting) * entropy.uniform(0.9, 1.0)

    def _drain(self, now: float) -> list[Finished]:
        while self._locked_out and self._locked_out[0][0] <= now:
            self._outbox.append(self._locked_out.popleft()[1])
        finished: list[Finished] = []
        size = 0
        while self._outbox and len(finished) < BATCH and size < BATCH_BYTES:
            each = self._outbox.popleft()
            size += len(each.outcome.result) if type(each.outcome) is Completed else 100
            finished.append(each)
        self._drained += len(finished)
        if finished:
            self._flushed_at = now
            self._measure(finished, now)
        return finished

    def _measure(self, finished: Sequence[Finished], now: float) -> None:
        ran = [each.seconds for each in finished if type(each.outcome) is not HandedBack]
        if ran:
            self._stalled = False
            if self._ended >= MEMORY:
                self._busy, self._ended = self._busy / 2, self._ended // 2
            self._busy += sum(ran)
            self._ended += len(ran)
        self._measured += len(finished)
        passed = max(now - self._measured_at, 0.001)
        if self._version == self._dry:  # it is the pace of what comes in, not of this worker
            self._measured_at, self._measured = now, 0
        elif passed >= WINDOW or not self._rate:
            measured = self._measured / passed
            self._rate = (self._rate + measured) / 2 if self._rate else measured
            self._measured_at, self._measured = now, 0

    def _planned(
        self, finished: list[Finished], limit: int, look: bool, reconcile: bool, now: float
    ) -> Plan:
        token = entropy.bits(63)
        self._active += 1
        self._reserved += limit
        if limit:
            self._in_flight.add(token)
        start = self._start
        if limit and now > self._start_until:
            start, self._start_until = START, now + PLACE_HOLDS
            self._hinted.clear()
        if len(self._outbox) >= MANY or limit >= BATCH:
            self.wakers[-1]()
        apart = self.servers > 1 and min(len(finished), limit) >= MANY
        return Plan(finished, limit, apart, look, reconcile, token, start, self._version)

    def _remember_place(self, plan: Plan, claimed: Sequence[Claimed]) -> None:
        if len(claimed) < plan.limit:
            self._dry = plan.version
            self._half_dry = plan.start != START
        if claimed and not self._is_hinted_before(claimed[0].rank, plan.version):
            last, first = claimed[-1], claimed[0]
            if len(claimed) == plan.limit:
                self._start = Place(last.rank, last.run_at, last.seq)
            else:
                self._start = Place(first.rank, first.run_at - LATE, 0)

    def _is_hinted_before(self, rank: int, version: int) -> bool:
        return any(r < rank and at > version for r, at in self._hinted.items())

    def _settle(self, finished: Sequence[Finished]) -> None:
        for each in finished:
            token = each.claimed.token
            self._tokens[token] -= 1
            if self._tokens[token] <= 0:
                del self._tokens[token]
            if each.claimed.crashes:
                self._lane.settle(each.claimed)

    def _give_back_stalled(self, now: float) -> None:
        # All threads are held by long tasks: what waits behind them may run elsewhere.
        if not self.inbox.empty() and now - self.last_start > STALLED and self._claiming:
            self._stalled, self._rate = True, 0.0
            self.give_back_unstarted()
