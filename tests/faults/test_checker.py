"""The judge is judged: it is silent about what is well, and sees each planted violation."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.faults.checker import Count, check
from tests.faults.evidence import Evidence, Fault, Invoke, Notebook, Row, Run, StepRun

ID = UUID(int=1)
SECOND = timedelta(seconds=1)


def run(
    start: float = 1.0, end: float | None = 2.0, *, id: UUID = ID, claim: int = 1, pid: int = 10,
    name: str = "run-1", tick: str | None = None,
) -> Run:  # fmt: skip
    return Run(id, "t", claim, pid, name, start, end, end is not None, tick)


def row(
    *, id: UUID = ID, state: str = "completed", claim: int = 1, result: Any = "run-1",
    tick: str | None = None,
) -> Row:  # fmt: skip
    return Row(id, "t", state, claim, 0, 0, result, None, tick)


def seen(**what: Any) -> Evidence:
    """One invocation that ran once and was recorded, but for what is given."""
    usual: dict[str, Any] = {
        "invokes": [Invoke(ID, "ok", 0.5)], "runs": [run()], "rows": [row()],
    }  # fmt: skip
    return Evidence(**{**usual, **what})


def only(count: Count, **figures: int) -> None:
    """These figures, every other one zero; and it is told as a violation."""
    told = (
        "lost", "ghosts", "double", "late", "invented", "overlaps_forbidden", "ticks_missing",
        "ticks_extra", "step_reruns",
    )  # fmt: skip
    assert {name: getattr(count, name) for name in told} == {**dict.fromkeys(told, 0), **figures}
    assert count.holds == (not any(figures.values()))


def test_what_is_well_is_not_blamed() -> None:
    count = check(seen())
    only(count)
    assert (count.executions, count.runs, count.violations) == (1, 1, [])


def test_an_invoke_that_succeeded_and_is_nowhere_is_lost() -> None:
    only(check(seen(rows=[], runs=[])), lost=1)


@pytest.mark.parametrize("state", ["r", "s", "x"])
def test_what_has_not_ended_when_all_should_have_is_lost(state: str) -> None:
    evidence = seen(rows=[row(state=state, result=None)])
    only(check(evidence), lost=1)
    only(check(evidence, settled=False))


def test_what_failed_has_ended() -> None:
    only(check(seen(rows=[row(state="failed", result=None)])))


@pytest.mark.parametrize("trace", [{"rows": [], "runs": [run()]}, {"rows": [row()], "runs": []}])
def test_what_was_rolled_back_and_left_a_trace_is_a_ghost(trace: dict[str, Any]) -> None:
    count = check(seen(invokes=[Invoke(ID, "failed", 0.5)], **trace))
    assert count.ghosts == 1


def test_what_nobody_invoked_is_a_ghost() -> None:
    only(check(seen(invokes=[])), ghosts=1)


@pytest.mark.parametrize("ran", [True, False])
def test_an_invoke_of_unknown_fate_may_have_been_made_or_not(ran: bool) -> None:
    there = {} if ran else {"runs": [], "rows": []}
    only(check(seen(invokes=[Invoke(ID, "unknown", 0.5)], **there)))


def test_two_ends_of_one_execution_are_double() -> None:
    runs = [run(), run(3, 4, name="run-2", claim=1)]
    only(check(seen(runs=runs, rows=[row(), row(result="run-2")])), double=1)


def test_a_result_of_a_claim_that_had_been_replaced_is_late() -> None:
    runs = [run(1, 9), run(5, 6, claim=2, pid=11, name="run-2")]
    evidence = seen(
        runs=runs, faults=[Fault("stall", 10, 2, 8)], rows=[row(claim=2, result="run-1")]
    )
    only(check(evidence), late=1)
    evidence.rows = [row(claim=2, result="run-2")]
    only(check(evidence))


@pytest.mark.parametrize("runs", [[], [run(end=None)]])
def test_a_result_that_no_body_returned_is_invented(runs: list[Run]) -> None:
    only(check(seen(runs=runs)), invented=1)


def two_at_once(**faults: Any) -> Count:
    runs = [run(1, 9), run(5, 6, claim=2, pid=11, name="run-2")]
    return check(seen(runs=runs, rows=[row(claim=2, result="run-2")], **faults))


def test_two_bodies_at_once_without_a_fault_are_forbidden() -> None:
    only(two_at_once(), overlaps_forbidden=1)


@pytest.mark.parametrize("what", ["kill", "stall", "outage", "timeout"])
def test_two_bodies_at_once_after_a_fault_are_allowed_and_counted(what: str) -> None:
    count = two_at_once(faults=[Fault(what, None if what == "outage" else 10, 2, 4)])
    only(count)
    assert count.overlaps_allowed == 1


@pytest.mark.parametrize(
    "fault", [Fault("stall", 11, 2, 4), Fault("stall", 10, 5.5, 7), Fault("stall", 10, 0, 0.5)],
    ids=["of the second", "after the second began", "before the first began"],
)  # fmt: skip
def test_a_fault_that_did_not_cause_it_excuses_nothing(fault: Fault) -> None:
    only(two_at_once(faults=[fault]), overlaps_forbidden=1)


def test_a_body_ends_with_its_process() -> None:
    runs = [run(1, None), run(5, 6, claim=2, pid=11, name="run-2")]
    evidence = seen(runs=runs, rows=[row(claim=2, result="run-2")], exits={10: 4.0})
    only(check(evidence))
    evidence.exits = {10: 5.5}
    only(check(evidence), overlaps_forbidden=1)


def test_one_after_the_other_is_no_overlap() -> None:
    runs = [run(1, 2), run(2, 3, claim=2, name="run-2")]
    only(check(seen(runs=runs, rows=[row(claim=2, result="run-2")])))


def test_a_step_that_runs_after_it_was_recorded_is_a_rerun() -> None:
    entered, recorded = StepRun(ID, "a", "entered", 1.1), StepRun(ID, "a", "recorded", 1.2)
    again, before = StepRun(ID, "a", "entered", 1.3), StepRun(ID, "a", "entered", 1.0)
    other = StepRun(uuid4(), "a", "entered", 1.4)
    only(check(seen(steps=[before, entered, recorded, other])))
    only(check(seen(steps=[entered, recorded, again])), step_reruns=1)


def ticked(*seconds: int) -> Evidence:
    """Ticks at these seconds, each an execution of its own."""
    evidence = Evidence()
    for n, second in enumerate(seconds):
        tick = datetime(2031, 5, 4, 12, 0, second).isoformat() + "+00:00"
        id = UUID(int=n + 1)
        evidence.rows.append(row(id=id, tick=tick, result=f"run-{n}"))
        evidence.runs.append(run(id=id, tick=tick, name=f"run-{n}"))
    return evidence


def test_each_tick_once_is_well() -> None:
    count = check(ticked(1, 2, 3, 4), every=SECOND)
    only(count)
    assert count.ticks == 4


def test_a_gap_is_a_missing_tick() -> None:
    only(check(ticked(1, 2, 5), every=SECOND), ticks_missing=2)


def test_no_tick_at_all_is_missing() -> None:
    only(check(Evidence(), every=SECOND), ticks_missing=1)


def test_two_executions_of_one_tick_are_one_too_many() -> None:
    only(check(ticked(1, 2, 2, 3), every=SECOND), ticks_extra=1)


def test_a_run_of_a_tick_whose_row_is_gone_still_counts() -> None:
    evidence = ticked(1, 2, 2, 3)
    del evidence.rows[2]
    only(check(evidence, every=SECOND), ticks_extra=1)


def test_the_notebook_gives_back_what_was_noted(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path / "evidence")
    notebook.note("invoke", id=ID, fate="ok")
    notebook.note("start", id=ID, task="t", claim=2, pid=7, run="run-a", tick=None)
    notebook.note("start", id=ID, task="t", claim=3, pid=8, run="run-b", tick=None)
    notebook.note("end", run="run-b", returned=True)
    notebook.note("fault", what="stall", pid=7, since=1.0, until=2.0)
    notebook.note("step", id=ID, step="a", what="entered")
    notebook.note("exit", pid=7)
    found = notebook.read()
    assert [(r.claim, r.end is None, r.returned) for r in found.runs] == [
        (2, True, False), (3, False, True),
    ]  # fmt: skip
    assert [(i.id, i.fate) for i in found.invokes] == [(ID, "ok")]
    assert found.faults == [Fault("stall", 7, 1.0, 2.0)]
    assert [(s.step, s.what) for s in found.steps] == [("a", "entered")]
    assert list(found.exits) == [7]


def test_a_line_that_is_still_being_written_is_left_for_later(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path / "evidence")
    notebook.note("exit", pid=7)
    with notebook.path.open("a") as file:
        file.write('{"kind": "exit", "at": 1.0, "p')
    assert list(notebook.read().exits) == [7]
    with notebook.path.open("a") as file:
        file.write('id": 8}\n')
    assert list(notebook.read().exits) == [7, 8]
