"""What the rooms hand to each other, and the error tree."""

import dataclasses
import pickle
import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from conductor_cli import errors, models
from conductor_cli.models import Execution, ExecutionError, State

ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")


def execution() -> Execution:
    return Execution(
        id=ID, task="t", queue="q", state=State.FAILED, payload={}, result=None,
        error=ExecutionError("ValueError", "no"), attempt=1, failures=1, crashes=0, priority=0,
        run_at=None, created_at=datetime(2026, 1, 1, tzinfo=UTC), started_at=None,
        finished_at=None, parent_id=None, progress=None, metadata=None,
        group=None, runs=1, cancel_requested=False, dedupe_key=None,
    )  # fmt: skip


# ---------------------------------------------------------------- executions


def test_an_execution_has_the_fields_of_the_contract_in_order() -> None:
    assert [each.name for each in dataclasses.fields(Execution)] == [
        "id", "task", "queue", "state", "payload", "result", "error", "attempt", "failures",
        "crashes", "priority", "run_at", "created_at", "started_at", "finished_at", "parent_id",
        "progress", "metadata", "group", "runs", "cancel_requested", "dedupe_key",
    ]  # fmt: skip


def test_a_drain_report_has_the_fields_of_the_contract() -> None:
    assert [each.name for each in dataclasses.fields(models.DrainReport)] == [
        "completed", "failed", "cancelled", "left_retrying", "left_scheduled", "left_waiting",
        "left_blocked", "left_unserved", "timed_out", "elapsed", "failures",
    ]  # fmt: skip


def test_what_was_read_cannot_be_changed_and_travels() -> None:
    one = execution()
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.state = State.COMPLETED  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(one)) == one


def test_states_are_their_words_and_three_of_them_are_ends() -> None:
    assert [str(each) for each in State] == [
        "pending", "running", "waiting", "completed", "failed", "cancelled",
    ]  # fmt: skip
    assert {each for each in State if each.has_ended} == {"completed", "failed", "cancelled"}


@pytest.mark.parametrize("name", ["a", "A.b-c_d:0", "x" * 200])
def test_names_are_made_of_these(name: str) -> None:
    assert re.fullmatch(models.NAME_PATTERN, name)


@pytest.mark.parametrize("name", ["", "x" * 201, "a b", "a/b", "ä", "a\n", "*"])
def test_these_are_no_names(name: str) -> None:
    assert not re.fullmatch(models.NAME_PATTERN, name)


# ---------------------------------------------------------------- errors

SAMPLES = [
    errors.ConfigError("one", "two"),
    errors.TaskDefinitionError("wrong"),
    errors.UnknownTask("a", ["b"], "Look there."),
    errors.PayloadError("wrong"),
    errors.DatabaseUnavailable("away"),
    errors.CredentialsRefused("no"),
    errors.SchemaMissing("none"),
    errors.SchemaTooNew("newer"),
    errors.Duplicate(ID, "key"),
    errors.ExecutionFailed(ID, ExecutionError("ValueError", "no")),
    errors.ExecutionCancelled(ID, None),
    errors.ExecutionNotFound(ID),
    errors.ShutdownTimeout("late"),
    errors.ChildFailed(ID, "task", ExecutionError("ValueError", "no")),
    errors.ChildCancelled(ID, "task", None),
    errors.ChildTimedOut(ID, "task"),
    errors.EventTimedOut("event"),
    errors.StepTimedOut("step", 1.5),
    errors.TimedOut("late"),
    errors.StepError("twice"),
    errors.DatabaseBusy("locked"),
    errors.DatabaseReadOnly("a standby"),
    errors.PermissionRefused("not on live"),
]


def tree(root: type[BaseException]) -> set[str]:
    return {name for each in root.__subclasses__() for name in {each.__name__, *tree(each)}}


def test_every_error_is_a_conductor_error_and_drawn_in_the_tree() -> None:
    package = {
        name
        for name in tree(errors.ConductorError)
        if getattr(errors, name, None) and not name.startswith("_")
    }
    assert package == {type(each).__name__ for each in SAMPLES}
    drawn = set(re.findall(r"[├└]── (\w+)", str(errors.__doc__)))
    assert drawn == {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__ and name[0] != "_"
    }


def test_what_a_task_says_is_no_error_of_conductor() -> None:
    for word in (errors.Cancel(), errors.Fail("x"), errors.Retry()):
        assert isinstance(word, errors.TaskSignal)
        assert not isinstance(word, errors.ConductorError)


def test_messages_say_what_happened() -> None:
    assert str(SAMPLES[0]) == "one\ntwo"
    assert errors.ConfigError("one", "two").problems == ("one", "two")
    assert str(SAMPLES[2]) == "No task is named 'a'. Did you mean 'b'? Look there."
    assert str(errors.UnknownTask("a")) == "No task is named 'a'."
    assert str(errors.UnknownTask("a", ["b", "c"])).endswith("Did you mean 'b' or 'c'?")
    assert str(SAMPLES[8]) == f"Execution {ID} already has the dedupe key 'key'."
    assert str(SAMPLES[9]) == f"Execution {ID} failed: ValueError: no"
    assert str(SAMPLES[10]) == f"Execution {ID} was cancelled."
    assert str(errors.ExecutionCancelled(ID, "why")) == f"Execution {ID} was cancelled: why"
    assert str(errors.Retry(5)) == "retry in 5 s"


def test_errors_carry_what_programs_need() -> None:
    failed = errors.ExecutionFailed(ID, ExecutionError("ValueError", "no", "trace"))
    assert (failed.id, failed.error.type, failed.error.traceback) == (ID, "ValueError", "trace")
    assert errors.Duplicate(ID, "key").id == ID
    assert errors.ExecutionCancelled(ID, "why").reason == "why"
    assert errors.ExecutionNotFound(ID).id == ID


@pytest.mark.parametrize(
    "error",
    [*SAMPLES, errors.Cancel("why"), errors.Fail("why"), errors.Retry(5, counts=False)],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_to_other_processes(error: Any) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
