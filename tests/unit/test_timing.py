"""Durations, retry delays and cron ticks, the nights of daylight saving above all."""

from __future__ import annotations

import math
import random
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from conductor_cli.errors import TaskDefinitionError
from conductor_cli.timing import (
    DEFAULT_RETRY,
    GRACE,
    MAX_MISSED,
    Backoff,
    Missed,
    Schedule,
    checked_retry,
    due,
    retry_delay,
    seconds,
    zone,
)

BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"
ERROR = RuntimeError("boom")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def local(zone_name: str, text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone_name)).astimezone(UTC)


def walls(schedule: Schedule, start: str, end: str) -> list[str]:
    """The ticks after ``start`` up to ``end``, both on the wall, as wall clock with offset."""
    name = schedule.timezone
    ticks = schedule.ticks(local(name, start), local(name, end), 1000)
    return [tick.astimezone(ZoneInfo(name)).strftime("%d %H:%M%z") for tick in ticks]


# ---------------------------------------------------------------- durations


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0.0), (2, 2.0), (0.5, 0.5), (timedelta(minutes=2), 120.0), (timedelta(0), 0.0)],
)
def test_a_duration_is_a_number_of_seconds_or_a_timedelta(value: object, expected: float) -> None:
    result = seconds(value, "timeout")
    assert result == expected
    assert type(result) is float


@pytest.mark.parametrize(
    "value", [True, False, -1, -0.1, math.nan, math.inf, "5", None, timedelta(-1), 10**400, 1j]
)
def test_what_is_no_duration_is_refused_by_name_and_value(value: object) -> None:
    with pytest.raises(ValueError, match="timeout must be seconds"):
        seconds(value, "timeout")
    with pytest.raises(TaskDefinitionError, match="timeout"):
        seconds(value, "timeout", TaskDefinitionError)


def test_an_unknown_time_zone_names_the_nearest() -> None:
    assert zone("Europe/Berlin").key == "Europe/Berlin"
    with pytest.raises(ValueError, match=r"'Europe/Berln'; did you mean Europe/Berlin"):
        zone("Europe/Berln")


@pytest.mark.parametrize(
    "name", ["", "Europe", "/etc/passwd", "../etc/passwd", "\0", "leapseconds"]
)
def test_nothing_but_a_time_zone_is_a_time_zone(name: str) -> None:
    with pytest.raises(ValueError, match="no time zone is named"):
        zone(name)


# ---------------------------------------------------------------- retries


def test_the_default_delays_grow_to_two_hours() -> None:
    delays = [retry_delay(None, failures, ERROR, lambda: 0.5) for failures in range(1, 14)]
    assert delays == [15, 30, 60, 120, 300, 600, 1200, 2400, 3600, 7200, 7200, 7200, 7200]


def test_the_default_delays_vary_by_a_tenth() -> None:
    assert retry_delay(None, 1, ERROR, lambda: 0.0) == pytest.approx(13.5)
    assert retry_delay(None, 1, ERROR, lambda: 1.0) == pytest.approx(16.5)
    assert len({retry_delay(None, 1, ERROR) for _ in range(20)}) > 1


def test_a_list_is_taken_exactly_and_its_last_value_repeats() -> None:
    policy: list[float | timedelta] = [1, timedelta(seconds=2), 3.5]
    delays = [retry_delay(policy, failures, ERROR, lambda: 0.0) for failures in range(1, 6)]
    assert delays == [1, 2, 3.5, 3.5, 3.5]


def test_backoff_multiplies_up_to_its_maximum() -> None:
    backoff = Backoff(10, 3, maximum=timedelta(seconds=100), jitter=0)
    assert [backoff.delay(failures) for failures in range(1, 6)] == [10, 30, 90, 100, 100]
    assert retry_delay(backoff, 2, ERROR) == 30


def test_backoff_varies_by_its_jitter_and_keeps_its_maximum() -> None:
    backoff = Backoff(10, 2, maximum=1000, jitter=0.2)
    assert backoff.delay(1, lambda: 0.0) == pytest.approx(8)
    assert backoff.delay(1, lambda: 1.0) == pytest.approx(12)
    at_the_top = [backoff.delay(50) for _ in range(500)]
    assert all(800 <= delay <= 1000 for delay in at_the_top)
    assert len({round(delay, 3) for delay in at_the_top}) > 400  # they do not meet at the maximum


def test_backoff_does_not_overflow() -> None:
    assert Backoff(1, 1000, maximum=60, jitter=0).delay(100_000) == 60
    assert Backoff(0, 1000, maximum=60, jitter=0).delay(100_000) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"first": -1},
        {"first": True},
        {"first": 1, "factor": 0.5},
        {"first": 1, "factor": math.inf},
        {"first": 1, "jitter": 1.1},
        {"first": 1, "maximum": math.inf},
        {"first": 10, "maximum": 5},
        {"first": "10"},
    ],
)
def test_a_backoff_out_of_range_is_refused_at_definition(arguments: dict[str, float]) -> None:
    with pytest.raises(TaskDefinitionError, match="Backoff"):
        Backoff(**arguments)


def test_a_function_decides_by_failures_and_error_and_may_give_up() -> None:
    def policy(failures: int, error: BaseException) -> float | timedelta | None:
        if isinstance(error, KeyError):
            return None
        return timedelta(minutes=failures)

    assert retry_delay(policy, 3, ERROR) == 180
    assert retry_delay(policy, 3, KeyError("gone")) is None


@pytest.mark.parametrize("answer", [-1, "5", True, math.nan, math.inf, [1]])
def test_a_function_that_returns_no_duration_is_named(answer: object) -> None:
    def my_policy(failures: int, error: BaseException) -> Any:
        return answer

    with pytest.raises(TaskDefinitionError, match="my_policy"):
        retry_delay(my_policy, 1, ERROR)


@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_a_function_that_raises_is_named_whatever_it_raises(kind: type[BaseException]) -> None:
    def my_policy(failures: int, error: BaseException) -> float:
        raise kind

    with pytest.raises(TaskDefinitionError, match=f"my_policy raised {kind.__name__}") as caught:
        retry_delay(my_policy, 1, ERROR)
    assert isinstance(caught.value.__cause__, kind)


@pytest.mark.parametrize("policy", [[], "15", 15, [-1], [True], ["1"], [math.inf], b"1", {1: 2}])
def test_what_is_no_retry_policy_is_refused_at_definition(policy: object) -> None:
    with pytest.raises(TaskDefinitionError, match="retry"):
        checked_retry(policy)


def test_every_shape_of_retry_policy_is_accepted() -> None:
    backoff = Backoff(5)

    def function(failures: int, error: BaseException) -> float:
        return 1

    assert checked_retry(None) is None
    assert checked_retry(backoff) is backoff
    assert checked_retry(function) is function
    assert checked_retry([1, timedelta(seconds=2)]) == (1.0, 2.0)


def test_the_default_policy_is_the_documented_one() -> None:
    assert DEFAULT_RETRY == (15, 30, 60, 120, 300, 600, 1200, 2400, 3600, 7200)


# ---------------------------------------------------------------- expressions


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("* * * * *", "2026-05-06T07:09:00"),
        ("*/15 * * * *", "2026-05-06T07:15:00"),
        ("0 6 * * *", "2026-05-07T06:00:00"),
        ("5,50 7-8 * * *", "2026-05-06T07:50:00"),
        ("0 9 * * mon-fri", "2026-05-06T09:00:00"),
        ("0 0 * * 7", "2026-05-10T00:00:00"),
        ("0 0 * * 0", "2026-05-10T00:00:00"),
        ("0 0 * * SUN", "2026-05-10T00:00:00"),
        ("0 0 * * SAT-SUN", "2026-05-09T00:00:00"),
        ("0 0 1 JAN *", "2027-01-01T00:00:00"),
        ("0 0 L * *", "2026-05-31T00:00:00"),
        ("0 0 LW * *", "2026-05-29T00:00:00"),
        ("0 0 * * 5L", "2026-05-29T00:00:00"),
        ("0 0 * * MON#2", "2026-05-11T00:00:00"),
        ("0 0 29 2 *", "2028-02-29T00:00:00"),
        ("*/10 * * * * *", "2026-05-06T07:08:20"),
        ("30 0 0 * * *", "2026-05-07T00:00:30"),
        ("@hourly", "2026-05-06T08:00:00"),
        ("@daily", "2026-05-07T00:00:00"),
        ("@midnight", "2026-05-07T00:00:00"),
        ("@weekly", "2026-05-10T00:00:00"),
        ("@monthly", "2026-06-01T00:00:00"),
        ("@yearly", "2027-01-01T00:00:00"),
        ("@Annually", "2027-01-01T00:00:00"),
        ("  0   6  *  * * ", "2026-05-07T06:00:00"),
    ],
)
def test_an_expression_fires_next(expression: str, expected: str) -> None:
    now = utc("2026-05-06T07:08:15.5")  # a Wednesday
    assert Schedule.parse(expression, "UTC").next_after(now) == utc(expected)


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("61 * * * *", "bad minute '61'"),
        ("* 24 * * *", "bad hour '24'"),
        ("* * * 13 *", "bad month '13'"),
        ("* * * * 8", "bad day-of-week '8'"),
        ("* * * * * MONDAY", "bad day-of-week 'MONDAY'"),
        ("60 * * * * *", "bad second '60'"),
        ("*/0 * * * *", "bad minute"),
        ("5-1 * * * *", "bad minute"),
        ("* * * * FRI-MON", "bad day-of-week"),
        ("* * * *", "not 4"),
        ("* * * * * * *", "not 7"),
        ("", "not 0"),
        ("@reboot", "expected one of @hourly @daily"),
        ("0 0 30 2 *", "it never fires"),
        ("0 0 31 4 *", "it never fires"),
        ("0 0 *,29 2 MON#9", "bad day-of-week"),
        ("9" * 300 + " * * * *", "at most 200"),
    ],
)
def test_a_wrong_expression_is_named_with_its_problem(expression: str, problem: str) -> None:
    with pytest.raises(TaskDefinitionError) as caught:
        Schedule.parse(expression, "UTC")
    assert repr(expression) in str(caught.value)
    assert problem in str(caught.value)


def test_a_wrong_time_zone_is_named_with_the_expression() -> None:
    with pytest.raises(TaskDefinitionError, match=r"cron '@daily': no time zone .*Mars"):
        Schedule.parse("@daily", "Mars/Olympus")


def test_no_garbage_gets_past_as_anything_but_a_definition_error() -> None:
    chance = random.Random(7)
    for _ in range(3000):
        text = "".join(chance.choices("*/-,#L?W0123579 ²٣ABMON@", k=chance.randint(0, 12)))
        expression = chance.choice([text, f"{text} * * * *", f"* * {text} * *", f"* * * * {text}"])
        try:
            schedule = Schedule.parse(expression, "UTC")
        except TaskDefinitionError:
            continue
        assert schedule.next_after(utc("2026-01-01")) is not None, expression


def test_a_schedule_is_equal_by_its_words() -> None:
    assert Schedule.parse("@daily", BERLIN) == Schedule.parse("@daily", BERLIN)
    assert Schedule.parse("@daily", BERLIN) != Schedule.parse("@daily", "UTC")
    assert repr(Schedule.parse("@daily", "UTC")) == (
        "Schedule(expression='@daily', timezone='UTC')"
    )


def test_ticks_are_aware_and_in_utc() -> None:
    tick = Schedule.parse("0 6 * * *", BERLIN).next_after(utc("2026-07-01"))
    assert tick == utc("2026-07-01T04:00")
    assert tick is not None
    assert tick.tzinfo is UTC


def test_a_moment_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a time zone"):
        Schedule.parse("@daily", "UTC").next_after(datetime(2026, 1, 1))


def test_a_tick_never_follows_itself() -> None:
    daily = Schedule.parse("0 6 * * *", "UTC")
    assert daily.next_after(utc("2026-01-01T06:00")) == utc("2026-01-02T06:00")
    assert daily.next_after(utc("2026-01-01T06:00:00.000001")) == utc("2026-01-02T06:00")
    assert daily.next_after(utc("2026-01-01T05:59:59.999999")) == utc("2026-01-01T06:00")


@pytest.mark.parametrize("name", ["UTC", BERLIN, NEW_YORK, LORD_HOWE])
@pytest.mark.parametrize("expression", ["0 0 1 1 *", "* * * * *"])
def test_at_the_end_of_time_it_fires_no_more(name: str, expression: str) -> None:
    schedule = Schedule.parse(expression, name)
    assert schedule.next_after(datetime.max.replace(tzinfo=UTC)) is None


def test_the_29th_of_february_comes_in_leap_years_only() -> None:
    leap = Schedule.parse("30 4 29 2 *", BERLIN)
    ticks = leap.ticks(utc("2026-01-01"), utc("2110-01-01"), 100)
    assert [tick.year for tick in ticks][:3] == [2028, 2032, 2036]
    assert 2100 not in [tick.year for tick in ticks]
    assert {(tick.month, tick.day, tick.hour) for tick in ticks} == {(2, 29, 3)}
    last = Schedule.parse("0 0 L 2 *", "UTC").ticks(utc("2027-01-01"), utc("2028-12-31"), 9)
    assert [tick.day for tick in last] == [28, 29]


# ---------------------------------------------------------------- the nights of DST

# Berlin 2026: 29 March 02:00 -> 03:00, 25 October 03:00 -> 02:00.
# New York 2026: 8 March 02:00 -> 03:00, 1 November 02:00 -> 01:00.
# Lord Howe 2026: 4 October 02:00 -> 02:30, 5 April 02:00 -> 01:30.


@pytest.mark.parametrize(
    "expression", ["30 2 * * *", "0 30 2 * * *", "30 2 * * SUN", "30 2,3 * * *"]
)
def test_a_fixed_time_in_the_gap_of_berlin_runs_once_at_its_end(expression: str) -> None:
    ticks = walls(Schedule.parse(expression, BERLIN), "2026-03-29T00:00", "2026-03-29T03:29")
    assert ticks == ["29 03:00+0200"]


@pytest.mark.parametrize("expression", ["30 2 * * *", "0 30 2 * * *", "30 2 * * SUN"])
def test_a_fixed_time_in_the_repeated_hour_of_berlin_runs_the_first_time(expression: str) -> None:
    ticks = walls(Schedule.parse(expression, BERLIN), "2026-10-25T00:00", "2026-10-25T23:59")
    assert ticks == ["25 02:30+0200"]


@pytest.mark.parametrize(
    ("name", "spring", "autumn", "expression", "in_spring", "in_autumn"),
    [
        (NEW_YORK, "2026-03-08", "2026-11-01", "15 2 * * *", "08 03:00-0400", "01 02:15-0500"),
        (NEW_YORK, "2026-03-08", "2026-11-01", "15 1 * * *", "08 01:15-0500", "01 01:15-0400"),
        (LORD_HOWE, "2026-10-04", "2026-04-05", "10 2 * * *", "04 02:30+1100", "05 02:10+1030"),
        (LORD_HOWE, "2026-10-04", "2026-04-05", "40 1 * * *", "04 01:40+1030", "05 01:40+1100"),
        (LORD_HOWE, "2026-10-04", "2026-04-05", "0 40 1 * * *", "04 01:40+1030", "05 01:40+1100"),
        # Where midnight itself is missing:
        (
            "America/Havana",
            "2026-03-08",
            "2026-11-01",
            "0 0 * * *",
            "08 01:00-0400",
            "01 00:00-0400",
        ),
    ],
)
def test_a_fixed_time_runs_once_on_both_nights(
    name: str, spring: str, autumn: str, expression: str, in_spring: str, in_autumn: str
) -> None:
    schedule = Schedule.parse(expression, name)
    for day, expected in ((spring, in_spring), (autumn, in_autumn)):
        midnight = datetime.fromisoformat(day)
        start = (midnight - timedelta(minutes=1)).isoformat()
        assert walls(schedule, start, f"{day}T23:58") == [expected]


def test_several_fixed_times_in_one_gap_are_one_tick() -> None:
    schedule = Schedule.parse("0,15,30,45 2,3 * * *", BERLIN)
    assert walls(schedule, "2026-03-29T00:00", "2026-03-29T23:00") == [
        "29 03:00+0200",
        "29 03:15+0200",
        "29 03:30+0200",
        "29 03:45+0200",
    ]


def test_a_fixed_time_of_a_day_that_was_skipped_runs_when_the_next_begins() -> None:
    schedule = Schedule.parse("0 12 * * *", "Pacific/Apia")  # had no 30 December 2011
    assert walls(schedule, "2011-12-29T00:00", "2011-12-31T23:00") == [
        "29 12:00-1000",
        "31 00:00+1400",
        "31 12:00+1400",
    ]


SPACINGS = [
    ("* * * * *", 1), ("*/10 * * * *", 10), ("*/30 * * * *", 30), ("0,30 * * * *", 30),
    ("0 * * * *", 60), ("0 0 * * * *", 60), ("0 0-23 * * *", 60), ("20 */1 * * *", 60),
]  # fmt: skip
TWO_NIGHTS = [
    (BERLIN, "2026-03-29"), (BERLIN, "2026-10-25"), (NEW_YORK, "2026-03-08"),
    (NEW_YORK, "2026-11-01"), (LORD_HOWE, "2026-10-04"), (LORD_HOWE, "2026-04-05"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "minutes", "name", "night"),
    [
        (*spacing, *night)
        for spacing in SPACINGS
        for night in TWO_NIGHTS
        # An hour's spacing cannot be kept where the wall moves by half an hour.
        if spacing[1] <= 30 or night[0] != LORD_HOWE
    ],
)
def test_intervals_keep_their_spacing(expression: str, minutes: int, name: str, night: str) -> None:
    schedule = Schedule.parse(expression, name)
    start = local(name, night) - timedelta(hours=2)
    ticks = schedule.ticks(start, start + timedelta(hours=10), 1000)
    assert len(ticks) == 600 // minutes
    gaps = {after - before for before, after in pairwise(ticks)}
    assert gaps == {timedelta(minutes=minutes)}


def test_seconds_keep_their_spacing_through_the_night() -> None:
    schedule = Schedule.parse("*/20 * * * * *", BERLIN)
    for change in ("2026-03-29T01:00", "2026-10-25T01:00"):
        start = utc(change) - timedelta(minutes=2)
        ticks = schedule.ticks(start, start + timedelta(minutes=4), 100)
        assert ticks == [start + timedelta(seconds=20 * n) for n in range(1, 13)]


def test_an_interval_within_a_named_hour_goes_by_the_wall() -> None:
    schedule = Schedule.parse("*/15 2 * * *", BERLIN)
    assert walls(schedule, "2026-03-29T00:00", "2026-03-29T23:00") == []
    autumn = walls(schedule, "2026-10-25T00:00", "2026-10-25T23:00")
    assert autumn == [
        f"25 02:{minute}{offset}" for offset in ("+0200", "+0100") for minute in ("00", 15, 30, 45)
    ]


def test_seconds_within_a_named_time_go_by_the_wall() -> None:
    schedule = Schedule.parse("*/30 30 2 * * *", BERLIN)
    assert walls(schedule, "2026-03-29T00:00", "2026-03-29T23:00") == []
    assert walls(schedule, "2026-10-25T00:00", "2026-10-25T23:00") == [
        f"25 02:30{offset}" for offset in ("+0200", "+0200", "+0100", "+0100")
    ]


def test_half_an_hour_of_shift_loses_no_tick() -> None:
    """cronsim alone starts at 03:30 and 02:30 on these days."""
    spring = walls(Schedule.parse("*/20 3 * * *", LORD_HOWE), "2026-10-04", "2026-10-04T23:00")
    assert spring == ["04 03:00+1100", "04 03:20+1100", "04 03:40+1100"]
    autumn = walls(Schedule.parse("*/20 2 * * *", LORD_HOWE), "2026-04-05", "2026-04-05T23:00")
    assert autumn == ["05 02:00+1030", "05 02:20+1030", "05 02:40+1030"]


def matches(wall: datetime, minutes: set[int], hours: set[int]) -> bool:
    return wall.second == 0 and wall.minute in minutes and wall.hour in hours


EVERY_HOUR, EVERY_MINUTE = set(range(24)), set(range(60))
CHECKED = [
    ("*/7 * * * *", set(range(0, 60, 7)), EVERY_HOUR),
    ("40 * * * *", {40}, EVERY_HOUR),
    ("15 */2 * * *", {15}, set(range(0, 24, 2))),
    ("*/10 1-3 * * *", set(range(0, 60, 10)), {1, 2, 3}),
    ("* 2 * * *", EVERY_MINUTE, {2}),
    ("5,35 2 * * *", {5, 35}, {2}),
    ("0-59 1,2 * * *", EVERY_MINUTE, {1, 2}),
    ("59 1-23 * * *", {59}, set(range(1, 24))),
]
NIGHTS = [
    (BERLIN, "2026-03-29"), (BERLIN, "2026-10-25"), (NEW_YORK, "2026-03-08"),
    (NEW_YORK, "2026-11-01"), (LORD_HOWE, "2026-10-04"), (LORD_HOWE, "2026-04-05"),
    ("UTC", "2026-03-29"), ("America/Havana", "2026-03-08"), ("Africa/Casablanca", "2026-02-15"),
    ("Asia/Kathmandu", "2026-05-05"), ("Antarctica/Troll", "2026-03-29"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "night"), NIGHTS)
@pytest.mark.parametrize(("expression", "minutes", "hours"), CHECKED)
def test_ticks_agree_with_trying_every_minute(
    expression: str, minutes: set[int], hours: set[int], name: str, night: str
) -> None:
    place = ZoneInfo(name)
    start = utc(night) - timedelta(days=1, minutes=1)
    end = start + timedelta(days=3)
    moments = [start + timedelta(minutes=n) for n in range(1, 3 * 24 * 60 + 1)]
    here = [moment.astimezone(place) for moment in moments]
    if any(each.startswith("*") for each in expression.split()[:2]):
        expected = [
            moment
            for moment, wall in zip(moments, here, strict=True)
            if matches(wall, minutes, hours)
        ]
    else:
        # Walking the wall itself: a moment fires for every matching wall time the clock shows for
        # the first time, and for those it jumped over on its way here.
        expected, shown = [], (start.astimezone(place)).replace(tzinfo=None)
        for moment, aware in zip(moments, here, strict=True):
            wall = aware.replace(tzinfo=None)
            passed = int((wall - shown) / timedelta(minutes=1))
            if any(matches(wall - timedelta(minutes=n), minutes, hours) for n in range(passed)):
                expected.append(moment)
            shown = max(shown, wall)
    assert Schedule.parse(expression, name).ticks(start, end, 100_000) == expected


@pytest.mark.parametrize("name", [BERLIN, NEW_YORK, LORD_HOWE, "UTC"])
@pytest.mark.parametrize(
    "expression", ["30 2 * * *", "*/25 * * * *", "0,40 1-3 * * *", "7 7 2 2,3 0"]
)
def test_from_any_moment_the_next_tick_is_the_same(expression: str, name: str) -> None:
    """No tick is lost or doubled by asking from another moment: leaders come and go."""
    schedule = Schedule.parse(expression, name)
    chance = random.Random(11)
    start, end = utc("2026-03-01"), utc("2026-11-03")
    ticks = schedule.ticks(start, end, 100_000)
    assert ticks == sorted(set(ticks))
    for _ in range(300):
        moment = start + timedelta(seconds=chance.randint(0, 245 * 86400), microseconds=5)
        expected = next((tick for tick in ticks if tick > moment), None)
        found = schedule.next_after(moment)
        assert found == expected or (expected is None and found is not None and found > end)


def test_following_its_own_ticks_gives_the_same_as_listing_them() -> None:
    for name in (BERLIN, LORD_HOWE):
        schedule = Schedule.parse("*/30 1-3 * * *", name)
        listed = schedule.ticks(utc("2026-03-20"), utc("2026-11-05"), 100_000)
        tick, followed = schedule.next_after(utc("2026-03-20")), []
        while tick is not None and tick <= utc("2026-11-05"):
            followed.append(tick)
            tick = schedule.next_after(tick)
        assert followed == listed


def test_ticks_include_the_end_not_the_start_and_stop_at_the_limit() -> None:
    hourly = Schedule.parse("@hourly", "UTC")
    noon = utc("2026-01-01T12:00")
    assert hourly.ticks(noon, noon + timedelta(hours=2), 9) == [
        noon + timedelta(hours=1),
        noon + timedelta(hours=2),
    ]
    assert len(hourly.ticks(noon, noon + timedelta(days=9), 5)) == 5
    assert hourly.ticks(noon, noon, 5) == []


@pytest.mark.parametrize("expression", ["*/10 * * * *", "0 9 * * MON", "* 3 1 * *", "30 2 * * *"])
def test_the_newest_ticks_are_the_last_of_all(expression: str) -> None:
    schedule = Schedule.parse(expression, BERLIN)
    start, end = utc("2026-03-20T00:00:00.3"), utc("2026-04-03T07:08:09.4")
    everything = schedule.ticks(start, end, 100_000)
    for count in (1, 2, 3, 50, 1000, 5000):
        assert schedule.newest(start, end, count) == everything[-count:]
    assert schedule.newest(start, end, 0) == []
    assert schedule.newest(end, start, 3) == []


# ---------------------------------------------------------------- missed ticks

NOON = utc("2026-01-01T12:00")


def test_nothing_is_due_before_its_tick() -> None:
    hourly = Schedule.parse("@hourly", "UTC")
    for policy in Missed:
        result = due(hourly, NOON, NOON - timedelta(microseconds=1), policy)
        assert (result.ticks, result.next, result.skipped) == ((), NOON, 0)


@pytest.mark.parametrize("policy", Missed)
@pytest.mark.parametrize("late", [0, 0.4, 20, 60])
def test_a_late_tick_fires_once_under_every_policy(policy: Missed, late: float) -> None:
    hourly = Schedule.parse("@hourly", "UTC")
    result = due(hourly, NOON, NOON + timedelta(seconds=late), policy)
    assert (result.ticks, result.next) == ((NOON,), NOON + timedelta(hours=1))
    assert result.skipped == 0


@pytest.mark.parametrize("policy", Missed)
def test_every_tick_of_a_takeover_fires(policy: Missed) -> None:
    every_second = Schedule.parse("* * * * * *", "UTC")
    result = due(every_second, NOON, NOON + timedelta(seconds=20.7), policy)
    assert result.ticks == tuple(NOON + timedelta(seconds=n) for n in range(21))
    assert result.next == NOON + timedelta(seconds=21)
    assert result.skipped == 0


@pytest.mark.parametrize(
    ("policy", "fired", "skipped"),
    [(Missed.LATEST, [3], 3), (Missed.SKIP, [], 4), (Missed.ALL, [0, 1, 2, 3], 0)],
)
def test_missed_ticks_follow_the_policy(policy: Missed, fired: list[int], skipped: int) -> None:
    hourly = Schedule.parse("@hourly", "UTC")
    result = due(hourly, NOON, NOON + timedelta(hours=3, seconds=60.5), policy)
    assert result.ticks == tuple(NOON + timedelta(hours=n) for n in fired)
    assert result.next == NOON + timedelta(hours=4)
    assert result.skipped == skipped


@pytest.mark.parametrize(
    ("policy", "fired", "skipped"),
    [(Missed.LATEST, [3], 3), (Missed.SKIP, [3], 3), (Missed.ALL, [0, 1, 2, 3], 0)],
)
def test_a_late_tick_stands_for_the_missed_ones(
    policy: Missed, fired: list[int], skipped: int
) -> None:
    hourly = Schedule.parse("@hourly", "UTC")
    result = due(hourly, NOON, NOON + timedelta(hours=3, seconds=5), policy)
    assert result.ticks == tuple(NOON + timedelta(hours=n) for n in fired)
    assert result.skipped == skipped


@pytest.mark.parametrize("policy", Missed)
@pytest.mark.parametrize("expression", ["* * * * * *", "* * * 1 1 *", "0-59 0-59 0-22 * * *"])
def test_a_year_of_seconds_is_answered_at_once(policy: Missed, expression: str) -> None:
    schedule = Schedule.parse(expression, BERLIN)
    now = NOON + timedelta(days=366, hours=12)
    began = time.perf_counter()
    result = due(schedule, NOON + timedelta(seconds=1), now, policy)
    assert time.perf_counter() - began < 3  # walking would take a minute
    assert result.skipped == MAX_MISSED
    late = [tick for tick in result.ticks if tick >= now - GRACE]
    missed = [tick for tick in result.ticks if tick < now - GRACE]
    if policy is Missed.ALL:
        assert len(missed) == MAX_MISSED
    elif policy is Missed.SKIP or late:
        assert missed == []
    else:
        assert len(missed) == 1
    assert list(result.ticks) == sorted(set(result.ticks))
    if missed:
        assert schedule.ticks(missed[-1], now - GRACE - timedelta(seconds=1), 5) == []


@pytest.mark.parametrize("policy", Missed)
def test_due_again_and_again_fires_each_tick_once(policy: Missed) -> None:
    """Whatever moments a scheduler happens to look at, no tick is fired twice or out of order."""
    schedule = Schedule.parse("*/5 1-3 * * *", LORD_HOWE)
    chance = random.Random(3)
    now = utc("2026-04-04T12:00")
    following = schedule.next_after(now)
    fired: list[datetime] = []
    skipped = 0
    while now < utc("2026-04-06T12:00"):
        now += timedelta(seconds=chance.choice([0.5, 30, 59, 61, 700, 5000]))
        assert following is not None
        result = due(schedule, following, now, policy)
        fired += result.ticks
        skipped += result.skipped
        following = result.next
        assert following is not None
        assert following > now
    everything = schedule.ticks(utc("2026-04-04T12:00"), now, 10_000)
    assert fired == sorted(set(fired))
    assert set(fired) <= set(everything)
    assert len(fired) + skipped == len(everything)
    assert (skipped == 0) == (policy is Missed.ALL)


def test_a_schedule_that_ends_has_no_next_tick() -> None:
    yearly = Schedule.parse("@yearly", "UTC")
    last = utc("9999-01-01T00:00")
    assert due(yearly, last, last, Missed.LATEST).next is None


def test_the_policies_are_the_documented_words() -> None:
    assert [Missed(word) for word in ("latest", "skip", "all")] == list(Missed)
