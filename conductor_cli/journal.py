"""The rules of replay: what a run may ask its journal for, and which failures stand.

Nothing in here talks to a database or a thread. The caller holds a lock, and does what the
rules say: it writes the failures that ``rising`` returns before it lets the new call begin.

A *line* is a thread or an asyncio task of one run. A failure of a named call is *open* until a
named call begins on its line. Once its line has ended, the line that started it counts in its
place. From then on the failure *stands*. What stands is raised again at every replay. What is
open when the run ends is tried again by the next run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, NoReturn, Protocol, TypeVar

from conductor_cli.errors import StepError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

KINDS: Final = {
    "s": "a step", "z": "a sleep", "c": "a child", "d": "a started child", "g": "children",
    "w": "a wait for an execution", "e": "an event",
}  # fmt: skip


class Line:
    """A thread or an asyncio task of one run. ``parent`` has started it; the main line has none."""

    __slots__ = ("_has_ended", "calls", "parent")

    def __init__(
        self, parent: Line | None = None, has_ended: Callable[[], bool] = lambda: False
    ) -> None:
        self.parent = parent
        self.calls = 0  # steps whose function it is in
        self._has_ended = has_ended

    @property
    def is_main(self) -> bool:
        return self.parent is None

    @property
    def has_ended(self) -> bool:
        return self._has_ended()

    def heir(self) -> Line:
        """The line that counts in its place: itself, or the nearest above that has not ended."""
        line = self
        while line.parent is not None and line.has_ended:
            line = line.parent
        return line


class Recorded(Protocol):
    """What the rules read of an entry. ``branch``: it was asked for beside the main line."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def about(self) -> str | None: ...
    @property
    def part_of(self) -> str | None: ...
    @property
    def branch(self) -> bool: ...


E = TypeVar("E", bound=Recorded)
W = TypeVar("W")


@dataclass(slots=True, eq=False)
class Failure(Generic[W]):
    """A named call that raised ``error``; ``entry`` is what the journal is to keep of it."""

    name: str
    kind: str
    line: Line
    error: BaseException
    entry: W


class Journal(Generic[E, W]):
    """What one run has asked for, beside what earlier runs have recorded."""

    def __init__(self) -> None:
        self.main = Line()
        self.recorded: dict[str, E] = {}
        self._asked: dict[str, None] = {}  # in order
        self._unasked: dict[str, str] = {}  # recorded and not asked for yet: name and kind
        self._unasked_beside: dict[str, str] = {}
        self._open: list[Failure[W]] = []
        self._stands: dict[int, tuple[BaseException, str, str]] = {}

    def load(self, entries: Iterable[E]) -> None:
        """What earlier runs have recorded; again after a look into the database."""
        self.recorded = {entry.name: entry for entry in entries}
        new = [e for e in self.recorded.values() if e.name not in self._asked and not e.part_of]
        self._unasked = {e.name: e.kind for e in new if not e.branch}
        self._unasked_beside = {e.name: e.kind for e in new if e.branch}

    # Asking.

    def begin(self, line: Line, name: str, kind: str, about: str | None = None) -> E | None:
        """A named call begins. Returns its entry, or None: nothing is recorded under the name and
        it is this code's turn. Raises StepError where the code is not what it was."""
        if name in self._asked:
            raise StepError(
                f"The name {name!r} is used twice in one run. Give each step a name of "
                "its own; in a loop let it carry the index, as in f'send-{i}'."
            )
        entry = self.recorded.get(name)
        if entry is not None:
            refuse_another(entry, kind, about)
        elif self._unasked and line.is_main:
            _refuse_changed(self._unasked, f"{KINDS[kind]} {name!r} is new")
        self._ask(name)
        return entry

    def begin_part(self, name: str, group: str, about: str) -> None:
        """A call of several children asks for one of them."""
        entry = self.recorded.get(name)
        if name in self._asked or (entry is not None and entry.part_of != group):
            raise StepError(
                f"The name {name!r} is used by a step, and needed for a child of {group!r}."
            )
        if entry is not None:
            refuse_another(entry, "c", about)
        self._ask(name)

    def end(self) -> None:
        """The task has returned. Raises StepError when it has left recorded calls out."""
        if left := self._unasked or self._unasked_beside:
            _refuse_changed(left, "the task has returned")

    def _ask(self, name: str) -> None:
        self._asked[name] = None
        self._unasked.pop(name, None)
        self._unasked_beside.pop(name, None)

    # Failures.

    def fail(self, failure: Failure[W]) -> None:
        """A named call has raised: its failure is open."""
        self._open.append(failure)

    def rising(self, line: Line, name: str) -> list[Failure[W]]:
        """Open failures that come to stand when the call ``name`` begins on a line."""
        return [each for each in self._open if each.name != name and each.line.heir() is line]

    def settle(self, failures: Iterable[Failure[W]]) -> None:
        """These stand from now on: the database has them."""
        for each in failures:
            self._open.remove(each)
            self.stand(each.error, each.name, each.kind)

    def stand(self, error: BaseException, name: str, kind: str) -> None:
        """``error`` tells of a call whose outcome the database has decided, or had recorded."""
        self._stands[id(error)] = error, name, kind

    def end_by(self, error: BaseException) -> tuple[str, str] | None:
        """Name and kind of the call whose standing failure ends the run by ``error``.

        That is the error that stands, one that was raised from it, or a group of nothing else.
        """
        return self._found(error, set())

    def forget(self) -> None:
        """The run is over: keep no exception, nor what its traceback keeps."""
        self._open.clear()
        self._stands.clear()

    def _found(self, error: BaseException, seen: set[int]) -> tuple[str, str] | None:
        if id(error) in seen:
            return None
        seen.add(id(error))
        if (standing := self._stands.get(id(error))) is not None:
            return standing[1:]
        if error.__cause__ is not None and (found := self._found(error.__cause__, seen)):
            return found
        if isinstance(error, BaseExceptionGroup):
            parts = [self._found(each, seen | {id(error)}) for each in error.exceptions]
            return parts[0] if all(parts) else None
        return None

    def explain(self, name: str, kind: str) -> str:
        """Why an execution that ends by this call's failure is not tried again, and what helps."""
        names = list(self._asked)
        later = names[names.index(name) + 1 :] if name in names else []
        told = ", ".join(map(repr, later[:3])) + (", ..." if len(later) > 3 else "")
        if kind == "s":
            after = f"after it the task went on to {told}" if later else "it was recorded"
            return (
                f"The failure of step {name!r} stands, since {after}: another attempt would be "
                f"given the same failure. Step({name!r}, max_attempts=...) tries a step again "
                "before the task goes on. retry with restart runs the task from its beginning."
            )
        what = KINDS[kind].partition(" ")[2]
        after = f" After it the task went on to {told}." if later else ""
        return (
            f"What {what} {name!r} has come to is decided and stands: another attempt would be "
            f"given the same.{after} Catch it in the task, or give what is waited for more "
            "attempts or more time. retry with restart runs the task from its beginning."
        )


def refuse_another(entry: Recorded, kind: str, about: str | None) -> None:
    """Raises StepError when a name stands for something else than it did."""
    was, now = KINDS[entry.kind], KINDS[kind]
    if entry.kind == kind and about in (None, entry.about):
        return
    if entry.about and about and entry.kind == kind:
        was, now = f"{was} ({entry.about})", f"{now} ({about})"
    raise StepError(
        f"The name {entry.name!r} stands for {was} in this execution, and now for {now}: "
        "the code has changed since an earlier run. Give the new one a new name, or run "
        "the execution again from its beginning (retry with restart)."
    )


def _refuse_changed(unasked: dict[str, str], what: str) -> NoReturn:
    recorded = ", ".join(f"{KINDS[k]} {n!r}" for n, k in list(unasked.items())[:3])
    raise StepError(
        f"An earlier run recorded {recorded}, for which this one has not asked, but "
        f"{what}: the code has changed since, or depends on something besides what is "
        "recorded. Let what has been begun end with the old code, or run it again from its "
        "beginning (retry with restart)."
    )
