"""Every answer to "when?" that needs no database: durations, retry delays, cron ticks.

Pure functions and frozen values: the caller says what time it is. Moments are aware datetimes,
handed out in UTC; durations are seconds.

**What daylight saving does to a schedule.** An expression is *interval-style* when its hour,
minute or second field begins with ``*``, or names every hour; else its times are *fixed*.

- A fixed time inside the spring gap runs once, at the first valid moment after it
  (``30 2 * * *`` in Berlin: at 03:00). Several inside one gap run together as one tick.
- A fixed time inside the repeated hour of autumn runs once, the first time round.
- Interval-style expressions go by the clock on the wall through both nights, so ``*/10 * * * *``
  stays ten minutes apart. With an hour named as well (``*/15 2 * * *``), they do not fire on the
  day that lacks this hour, and fire through it twice on the day that has it twice.

Six-field expressions follow the same rule. cronsim alone does not (it runs ``0 30 2 * * *`` twice
in autumn and not in spring, and loses ticks where the clock moves by half an hour), so it is only
asked about wall clocks without a zone; the zone is applied here.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import islice, takewhile
from typing import Final, TypeAlias, cast
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from conductor_cli import entropy
from conductor_cli.arguments import shown
from conductor_cli.errors import TaskDefinitionError

GRACE: Final = timedelta(seconds=60)
"""A tick not older than this is merely late: no policy for missed ticks applies to it."""

MAX_MISSED: Final = 1000
"""As many missed ticks are fired by ``Missed.ALL``, and skipped ones are counted no further."""

_ALIASES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FIELDS: Final = ("second", "minute", "hour", "day-of-month", "month", "day-of-week")
_INSTANT: Final = timedelta(microseconds=1)
_SECOND: Final = timedelta(seconds=1)
_DAY: Final = timedelta(days=1)


# ------------------------------------------------------------------ durations and zones


def seconds(value: object, what: str, error: type[Exception] = ValueError) -> float:
    """``value`` (int, float or timedelta) in seconds.

    Raises ``error``, naming ``what``, unless it is finite and 0 or more; True is no duration.
    """
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(number, (int, float)) and not isinstance(number, bool):
        result = _as_float(number)
        if math.isfinite(result) and result >= 0:
            return result
    raise error(f"{what} must be seconds or a timedelta, finite and 0 or more, not {shown(value)}")


def zone(name: str) -> ZoneInfo:
    """The time zone of this IANA name; ValueError, with the nearest names, when there is none."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, TypeError, OSError):  # OSError: "Europe" is a folder
        near = difflib.get_close_matches(str(name), available_timezones(), n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(f"no time zone is named {shown(name)}{hint}")


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # an int too large for a float
        return math.inf


# ------------------------------------------------------------------ retries


@dataclass(frozen=True)
class Backoff:
    """Waits ``first`` seconds, then ``factor`` times longer after each failure, up to ``maximum``.

    ``jitter`` (0 to 1) is the share by which each delay varies at random either way; ``maximum``
    is kept to all the same. TaskDefinitionError for values out of range.
    """

    first: float | timedelta
    factor: float = 2.0
    maximum: float | timedelta = 7200.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        first = seconds(self.first, "Backoff first", TaskDefinitionError)
        maximum = seconds(self.maximum, "Backoff maximum", TaskDefinitionError)
        if maximum < first:
            raise TaskDefinitionError(f"Backoff maximum {maximum:g} s is below first {first:g} s")
        if seconds(self.factor, "Backoff factor", TaskDefinitionError) < 1:
            raise TaskDefinitionError(f"Backoff factor must be 1 or more, not {self.factor!r}")
        if seconds(self.jitter, "Backoff jitter", TaskDefinitionError) > 1:
            raise TaskDefinitionError(f"Backoff jitter must be from 0 to 1, not {self.jitter!r}")

    def delay(self, failures: int, random: Callable[[], float] = entropy.share) -> float:
        """Seconds to wait after failure number ``failures`` (1, 2, ...)."""
        maximum = seconds(self.maximum, "maximum")
        value = _jittered(self._base(failures, maximum), self.jitter, random)
        # What jitter lifts above the maximum is folded back below it, so that delays at the
        # maximum stay spread out instead of all meeting there.
        return min(value, 2 * maximum - value)

    def _base(self, failures: int, maximum: float) -> float:
        first = seconds(self.first, "first")
        try:
            return min(first * float(self.factor) ** (failures - 1), maximum)
        except OverflowError:
            return maximum if first else 0.0


RetryPolicy: TypeAlias = (
    Sequence[float | timedelta] | Backoff | Callable[[int, BaseException], float | timedelta | None]
)
"""Delays after failure 1, 2, ... (the last repeats), a Backoff, or a function of both."""

DEFAULT_RETRY: Final = (15, 30, 60, 120, 300, 600, 1200, 2400, 3600, 7200)
_DEFAULT_JITTER: Final = 0.1


def checked_retry(policy: object, what: str = "retry") -> RetryPolicy | None:
    """``policy`` if it can be one (None: the default); else TaskDefinitionError naming ``what``."""
    if policy is None or isinstance(policy, Backoff):
        return policy
    if callable(policy):
        return cast("Callable[[int, BaseException], float | timedelta | None]", policy)
    if isinstance(policy, Sequence) and not isinstance(policy, (str, bytes)) and policy:
        return tuple(seconds(item, what, TaskDefinitionError) for item in policy)
    raise TaskDefinitionError(
        f"{what} must be a list of seconds that is not empty, a Backoff or a function of"
        f" (failures, error), not {policy!r}"
    )


def retry_delay(
    policy: RetryPolicy | None,
    failures: int,
    error: BaseException,
    random: Callable[[], float] = entropy.share,
) -> float | None:
    """Seconds until the next attempt after failure number ``failures``; None gives up.

    Only the default policy (None) and a Backoff vary at random; a list is taken exactly.
    A function that raises (whatever it raises) or returns no duration is a TaskDefinitionError
    that names it: the caller should then fail the execution, as its author cannot have meant it.
    """
    if policy is None:
        return _jittered(_nth(DEFAULT_RETRY, failures), _DEFAULT_JITTER, random)
    if isinstance(policy, Backoff):
        return policy.delay(failures, random)
    if isinstance(policy, Sequence):
        return _nth(policy, failures)
    return _asked(policy, failures, error)


def _jittered(value: float, share: float, random: Callable[[], float]) -> float:
    return value * (1 + share * (2 * random() - 1))


def _nth(delays: Sequence[float | timedelta], failures: int) -> float:
    return seconds(delays[min(failures, len(delays)) - 1], "retry", TaskDefinitionError)


def _asked(
    policy: Callable[[int, BaseException], float | timedelta | None],
    failures: int,
    error: BaseException,
) -> float | None:
    name = getattr(policy, "__qualname__", None) or type(policy).__qualname__
    try:
        answer = policy(failures, error)
    except BaseException as problem:  # sys.exit() in here must not end the worker either
        raise TaskDefinitionError(
            f"the retry function {name} raised {type(problem).__name__}"
        ) from problem
    if answer is None:
        return None
    return seconds(answer, f"what the retry function {name} returns", TaskDefinitionError)


# ------------------------------------------------------------------ schedules


@dataclass(frozen=True)
class Schedule:
    """A cron expression in a time zone; made by ``parse``. Two are equal when both words are."""

    expression: str
    timezone: str
    _cron: str = field(repr=False, compare=False)
    _zone: ZoneInfo = field(repr=False, compare=False)
    _interval: bool = field(repr=False, compare=False)

    @classmethod
    def parse(cls, expression: str, timezone: str = "UTC") -> Schedule:
        """Five fields, six with seconds first, or ``@daily`` and its like.

        TaskDefinitionError names the expression and what is wrong with it: also when it can
        never fire, and when the time zone is unknown.
        """
        try:
            cron = _canonical(expression)
            interval = _is_interval(cron)
            return cls(expression, timezone, cron, zone(timezone), interval)
        except ValueError as problem:
            raise TaskDefinitionError(f"cron {expression!r}: {problem}") from None

    def next_after(self, moment: datetime) -> datetime | None:
        """The first tick after ``moment``, in UTC; None when it never fires again (50 years)."""
        return next(self._after(moment), None)

    def ticks(self, after: datetime, until: datetime, limit: int) -> list[datetime]:
        """The first ``limit`` ticks after ``after`` and up to ``until`` (inclusive), in UTC."""
        return list(islice(takewhile(lambda tick: tick <= until, self._after(after)), limit))

    def newest(self, after: datetime, until: datetime, limit: int) -> list[datetime]:
        """The last ``limit`` ticks after ``after`` and up to ``until``, the oldest first.

        Doubles the time it looks back until it finds enough, and halves it when that was far too
        much, so that it never walks more than a few times ``limit`` ticks at once.
        """
        first, until = _whole(after), _whole(until)
        low, high, start, halving = first, until, until - _SECOND, False
        while limit and first < until:
            start = max(start, low)
            found = self.ticks(start, until, 2 * limit)
            if len(found) >= 2 * limit:
                low, halving = start, True
            elif len(found) >= limit or start == first:
                return found[-limit:]
            else:
                high = start
            start = _middle(low, high) if halving else until - 2 * (until - start)
        return []

    def _after(self, moment: datetime) -> Iterator[datetime]:
        try:
            moment = _whole(moment)
            yield from self._flowing(moment) if self._interval else self._fixed(moment)
        except OverflowError:  # past the year 9999
            return

    def _fixed(self, moment: datetime) -> Iterator[datetime]:
        """Each time on the wall once; those of one gap share its end and count as one."""
        wall = moment.astimezone(self._zone).replace(tzinfo=None)
        for due_at in CronSim(self._cron, wall):
            tick = self._first_moment(due_at)
            if tick > moment:
                yield tick
                moment = tick

    def _first_moment(self, wall: datetime) -> datetime:
        tick = wall.replace(tzinfo=self._zone).astimezone(UTC)
        if tick.astimezone(self._zone).replace(tzinfo=None) == wall:
            return tick  # fold=0: the first time round
        before_the_gap = wall.replace(tzinfo=self._zone, fold=1).astimezone(UTC)
        return self._change_between(before_the_gap, tick)

    def _flowing(self, moment: datetime) -> Iterator[datetime]:
        """Each moment whose wall clock matches: one stretch of constant offset after another."""
        offset = self._offset(moment)
        after, since = moment, moment
        while True:
            for wall in CronSim(self._cron, after.replace(tzinfo=None) + offset):
                tick = (wall - offset).replace(tzinfo=UTC)
                change = self._next_change(since, tick)
                if change is not None:
                    break
                yield tick
                since = tick
            else:
                return
            offset = self._offset(change)
            after, since = change - _SECOND, change

    def _next_change(self, since: datetime, until: datetime) -> datetime | None:
        """The first moment after ``since``, up to ``until``, with another offset than then."""
        offset = self._offset(since)
        while since < until:
            probe = min(since + _DAY, until)
            if self._offset(probe) != offset:
                return self._change_between(since, probe)
            since = probe
        return None

    def _change_between(self, low: datetime, high: datetime) -> datetime:
        offset = self._offset(low)
        while high - low > _SECOND:
            middle = _middle(low, high)
            if self._offset(middle) == offset:
                low = middle
            else:
                high = middle
        return high

    def _offset(self, moment: datetime) -> timedelta:
        return moment.astimezone(self._zone).utcoffset() or timedelta()


def _whole(moment: datetime) -> datetime:
    """In UTC and cut to seconds, which loses nothing: ticks fall on whole seconds."""
    if moment.tzinfo is None:
        raise ValueError(f"a moment needs a time zone, and {moment.isoformat()} has none")
    return moment.astimezone(UTC).replace(microsecond=0)


def _middle(low: datetime, high: datetime) -> datetime:
    return _whole(low + (high - low) / 2)


def _canonical(expression: str) -> str:
    """As five or six fields for cronsim; ValueError when there are not that many."""
    if not isinstance(expression, str) or len(expression) > 200:
        raise ValueError("expected a string of at most 200 characters")
    text = expression.strip()
    if text.startswith("@"):
        if text.lower() not in _ALIASES:
            raise ValueError(f"expected one of {' '.join(_ALIASES)}")
        return _ALIASES[text.lower()]
    fields = text.upper().split()
    if len(fields) not in {5, 6}:
        raise ValueError(f"expected five fields, or six with seconds first, not {len(fields)}")
    fields[-1] = re.sub(r"-SUN\b", "-7", fields[-1])  # cronsim's SUN is 0, so FRI-SUN is empty
    return " ".join(fields)


def _is_interval(cron: str) -> bool:
    """Whether DST leaves its spacing alone; ValueError when ``cron`` is wrong or never fires."""
    fields = cron.split()
    try:
        # 2000 to 2050 holds every calendar there is: what does not fire then never does.
        calendar = CronSim(cron, datetime(2000, 1, 1))
        next(calendar)
    except CronSimError as problem:
        raise ValueError(_explained(problem, fields)) from None
    except StopIteration:
        raise ValueError("it never fires") from None
    return any(each.startswith("*") for each in fields[:-3]) or len(calendar.hours) == 24


def _explained(problem: CronSimError, fields: list[str]) -> str:
    """cronsim says no more than ``Bad minute``: add the field's text."""
    name = str(problem).removeprefix("Bad ")
    if name not in _FIELDS:
        return str(problem)
    text = fields[_FIELDS.index(name) - 6]
    if name == "day-of-month" and text.isdecimal() and 29 <= int(text) <= 31:
        return f"it never fires: none of its months has a day {text}"
    return f"bad {name} {text!r}"


# ------------------------------------------------------------------ missed ticks


class Missed(StrEnum):
    """What becomes of the ticks that passed while no server ran."""

    LATEST = "latest"
    SKIP = "skip"
    ALL = "all"


@dataclass(frozen=True)
class Due:
    """``ticks`` to fire now, the oldest first; ``next`` to store (None: never again).

    ``skipped`` counts the missed ticks that are not fired, up to MAX_MISSED ("that many or more").
    """

    ticks: tuple[datetime, ...]
    next: datetime | None
    skipped: int


def due(schedule: Schedule, next_tick: datetime, now: datetime, missed: Missed) -> Due:
    """What to fire at ``now``, when ``next_tick`` is the first tick not yet fired.

    Ticks not older than GRACE are late, not missed, and all fire under every policy: no takeover
    loses one. Older ones are missed. ``LATEST`` fires the newest missed one, and none when a
    late tick fires anyway: one late run stands for all that was missed. ``SKIP`` fires none.
    ``ALL`` fires the newest MAX_MISSED. The work is bounded, however long nothing ran.
    """
    if next_tick > now:
        return Due((), next_tick, 0)
    start = next_tick - _INSTANT
    cut = max(next_tick, now - GRACE) - _INSTANT
    late = schedule.ticks(cut, now, MAX_MISSED)
    made_up = schedule.newest(start, cut, _made_up(missed, bool(late))) if start < cut else []
    kept_from = made_up[0] - _INSTANT if made_up else cut
    skipped = len(schedule.ticks(start, kept_from, MAX_MISSED))
    return Due((*made_up, *late), schedule.next_after(now), skipped)


def _made_up(missed: Missed, any_late: bool) -> int:
    """How many missed ticks fire at most."""
    match missed:
        case Missed.SKIP:
            return 0
        case Missed.LATEST:
            return 0 if any_late else 1
        case Missed.ALL:
            return MAX_MISSED
