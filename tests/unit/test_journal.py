"""The rules of replay, alone: which failures stand, and what may be asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from conductor_cli.errors import StepError
from conductor_cli.journal import Failure, Journal, Line

STEADY = settings(deadline=None)  # a loaded machine is no failure


@dataclass
class Entry:
    name: str
    kind: str = "s"
    about: str | None = None
    part_of: str | None = None
    branch: bool = False


class Switch:
    """Whether a line has ended."""

    def __init__(self) -> None:
        self.is_on = False

    def __call__(self) -> bool:
        return self.is_on


def journal(*recorded: Entry) -> Journal[Entry, str]:
    made: Journal[Entry, str] = Journal()
    made.load(recorded)
    return made


def fail(book: Journal[Entry, str], line: Line, name: str) -> Exception:
    """A call that begins on a line and fails."""
    begin(book, line, name)
    error = ValueError(name)
    book.fail(Failure(name, "s", line, error, name))
    return error


def begin(book: Journal[Entry, str], line: Line, name: str) -> list[str]:
    """A call begins; the names whose failures stand from now on."""
    book.begin(line, name, "s")
    rising = book.rising(line, name)
    book.settle(rising)
    return [failure.name for failure in rising]


# ---------------------------------------------------------------- open and standing


def test_a_failure_is_open_until_a_call_begins_on_its_line() -> None:
    book, main = journal(), Line()
    error = fail(book, main, "charge")
    assert book.end_by(error) is None
    assert begin(book, main, "refund") == ["charge"]
    assert book.end_by(error) == ("charge", "s")
    assert begin(book, main, "mail") == []


def test_a_failure_beside_stands_only_once_its_line_has_ended() -> None:
    book, main, ended = journal(), Line(), Switch()
    branch = Line(main, ended)
    error = fail(book, branch, "a")
    assert begin(book, main, "b") == []
    ended.is_on = True
    assert book.end_by(error) is None
    assert begin(book, main, "c") == ["a"]
    assert book.end_by(error) == ("a", "s")


def test_a_call_of_a_sibling_makes_nothing_stand() -> None:
    book, main, ended = journal(), Line(), Switch()
    one, other = Line(main, ended), Line(main)
    fail(book, one, "a")
    ended.is_on = True
    assert begin(book, other, "b") == []


def test_the_heir_of_an_ended_line_is_the_nearest_above_that_lives() -> None:
    main, middle_ended, low_ended = Line(), Switch(), Switch()
    middle = Line(main, middle_ended)
    low = Line(middle, low_ended)
    assert low.heir() is low
    low_ended.is_on = True
    assert low.heir() is middle
    middle_ended.is_on = True
    assert low.heir() is main


def test_what_ends_a_run_is_the_error_one_raised_from_it_or_a_group_of_nothing_else() -> None:
    book, main = journal(), Line()
    error, other = fail(book, main, "a"), fail(book, main, "b")
    begin(book, main, "c")
    fresh = ValueError("fresh")

    def chained(cause: BaseException) -> Exception:
        raised = RuntimeError("x")
        raised.__cause__ = cause
        return raised

    beside = RuntimeError("beside")
    beside.__context__ = error
    assert book.end_by(chained(chained(error))) == ("a", "s")
    assert book.end_by(ExceptionGroup("g", [error, chained(other)])) == ("a", "s")
    assert book.end_by(ExceptionGroup("g", [error, fresh])) is None
    assert book.end_by(beside) is None
    assert book.end_by(fresh) is None
    round_and_round = RuntimeError("1")
    round_and_round.__cause__ = chained(round_and_round)
    assert book.end_by(round_and_round) is None


def test_the_explanation_names_the_call_what_came_after_it_and_what_helps() -> None:
    book, main = journal(), Line()
    fail(book, main, "charge")
    begin(book, main, "unlock")
    told = book.explain("charge", "s")
    for part in ("'charge'", "'unlock'", "Step('charge', max_attempts=...)", "restart"):
        assert part in told
    assert "child 'ship'" in book.explain("ship", "c")


# ---------------------------------------------------------------- what may be asked for


def test_a_new_call_of_the_main_line_waits_for_all_that_is_recorded_on_it() -> None:
    book, main = journal(Entry("a"), Entry("b", branch=True)), Line()
    with pytest.raises(StepError, match=r"recorded a step 'a'.*'new' is new"):
        book.begin(main, "new", "s")
    assert book.begin(Line(main), "beside", "s") is None
    assert book.begin(main, "a", "s") == Entry("a")
    assert book.begin(main, "new", "s") is None


@pytest.mark.parametrize("branch", [False, True])
def test_what_was_not_asked_for_is_named_at_the_end(branch: bool) -> None:
    book = journal(Entry("a"), Entry("gone", branch=branch), Entry("g[0]", part_of="g"))
    book.begin(Line(), "a", "s")
    with pytest.raises(StepError, match=r"recorded a step 'gone'.*has returned"):
        book.end()
    book.begin(Line(Line()), "gone", "s")
    book.end()


def test_a_name_stands_for_one_thing_and_is_used_once() -> None:
    book, main = journal(Entry("a"), Entry("c", "c", "ship")), Line()
    with pytest.raises(StepError, match=r"'a' stands for a step .*now for a sleep"):
        book.begin(main, "a", "z")
    with pytest.raises(StepError, match=r"a child \(ship\).*a child \(mail\)"):
        book.begin(main, "c", "c", "mail")
    book.begin(main, "a", "s")
    with pytest.raises(StepError, match="used twice"):
        book.begin(main, "a", "s")


def test_parts_of_a_group_are_asked_for_with_it() -> None:
    book, main = journal(Entry("g", "g", "1 t"), Entry("g[0]", "c", "t", "g"), Entry("x")), Line()
    book.begin(main, "g", "g", "1 t")
    book.begin_part("g[0]", "g", "t")
    with pytest.raises(StepError, match="'x' is used by a step"):
        book.begin_part("x", "g", "t")


@STEADY
@given(some.permutations(["a", "b", "c", "d"]))
def test_recorded_calls_may_be_asked_for_in_any_order(order: list[str]) -> None:
    book, main = journal(*(Entry(name) for name in "abcd")), Line()
    for name in order:
        assert book.begin(main, name, "s") == Entry(name)
    assert book.begin(main, "new", "s") is None
    book.end()


# ---------------------------------------------------------------- any code


@dataclass
class Model:
    """Lines by number (0: the main one), and what the contract says of their failures."""

    parents: list[int | None] = field(default_factory=lambda: [None])
    ended: set[int] = field(default_factory=set)
    open: dict[str, int] = field(default_factory=dict)
    stands: set[str] = field(default_factory=set)

    def begin(self, line: int, name: str) -> set[str]:
        rising = {n for n, at in self.open.items() if n != name and self._counts_as(at, line)}
        self.stands |= rising
        self.open = {n: at for n, at in self.open.items() if n not in rising}
        return rising

    def _counts_as(self, at: int, line: int) -> bool:
        if at == line:
            return at == 0 or at not in self.ended
        parent = self.parents[at]
        return at in self.ended and parent is not None and self._counts_as(parent, line)


ACTIONS = some.lists(
    some.tuples(
        some.sampled_from(["start", "end", "call", "fail", "fail", "recorded"]),
        some.integers(0, 30),
    ),
    max_size=40,
)


@STEADY
@given(ACTIONS)
def test_failures_stand_as_the_contract_says_whatever_the_lines_do(
    actions: list[tuple[str, int]],
) -> None:
    names = [f"r{i}" for i in range(len(actions))]
    book, model = journal(*(Entry(name, branch=True) for name in names)), Model()
    switches = [Switch()]
    lines = [Line()]
    errors: dict[str, Exception] = {}
    for place, (action, number) in enumerate(actions):
        living = [i for i in range(len(lines)) if i not in model.ended]
        line = living[number % len(living)]
        before = set(model.stands)
        match action:
            case "start":
                switches.append(Switch())
                lines.append(Line(lines[line], switches[-1]))
                model.parents.append(line)
            case "end" if line:
                switches[line].is_on = True
                model.ended.add(line)
            case "call" | "fail" | "recorded":
                name = names[place] if action == "recorded" else f"n{place}"
                rising = model.begin(line, name)
                assert set(begin(book, lines[line], name)) == rising
                if action == "fail":
                    errors[name] = error = ValueError(name)
                    book.fail(Failure(name, "s", lines[line], error, name))
                    model.open[name] = line
        assert before <= model.stands  # what stands stays
        for name, error in errors.items():
            assert (book.end_by(error) is not None) == (name in model.stands)


@STEADY
@given(ACTIONS, some.integers(0, 40))
def test_a_replay_is_asked_for_what_was_recorded_and_raises_what_stands(
    actions: list[tuple[str, int]], kill: int
) -> None:
    """One line, killed somewhere: the next run of the same code finds each call as it was left,
    and what stands was written before any later call began."""
    calls = [(f"c{i}", action == "fail") for i, (action, _) in enumerate(actions)]
    written: dict[str, Any] = {}

    def run(stop: int) -> list[str]:
        book, main, begun = journal(*(Entry(name) for name in written)), Line(), []
        for place, (name, fails) in enumerate(calls):
            if place == stop:
                return begun
            entry = book.begin(main, name, "s")
            assert (entry is None) == (name not in written)
            rising = book.rising(main, name)
            written.update({failure.name: "f" for failure in rising})
            book.settle(rising)
            if written.get(name) == "f":
                book.stand(ValueError(name), name, "s")
            elif name not in written:
                begun.append(name)
                if fails:
                    book.fail(Failure(name, "s", main, ValueError(name), name))
                else:
                    written[name] = "c"
        book.end()
        return begun

    first = run(kill)
    second = run(len(calls))
    again = set(first) & set(second)
    last = first[-1:] if first else []
    assert again <= set(last)  # only the failure that was open when it was killed
    assert all(written.get(name) in ("c", "f") for name, _ in calls[:-1])
