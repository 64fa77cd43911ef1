"""Every task that this process has defined, and the modules that defined it.

A task is registered when ``@task`` makes it. No name in a module has to lead to the task. So a
task that was made in a loop, in a factory or in a closure is found too, and so are two tasks of
one name.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    from types import FrameType

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Execution:
    """One execution of a module's code: a reload and a second import are others.

    ``spec``: the import system gives each execution of a module a spec of its own. A script has
    none.
    """

    module: str
    spec: object

    @property
    def is_current(self) -> bool:
        """Whether the module of this name is still what this execution has made."""
        found = _execution(self.module)
        return found is not None and found.spec is self.spec  # equal specs are no proof


@dataclass(frozen=True, slots=True)
class Definition(Generic[T]):
    """A task, and what defined it: the module of its function, and the module that asked for it.

    The two differ when a module calls a factory of another module.
    """

    task: T
    by: tuple[Execution, ...]

    @property
    def modules(self) -> frozenset[str]:
        return frozenset(each.module for each in self.by)


class Definitions(Generic[T]):
    """The tasks that were defined, in that order."""

    def __init__(self) -> None:
        self._all: list[Definition[T]] = []
        self._lock = threading.Lock()

    def add(self, task: T, module: str) -> None:
        """Keep a task that is being defined now; ``module``: the one of its function."""
        names = dict.fromkeys((module, _importing(sys._getframe(1))))
        by = tuple(found for name in names if name and (found := _execution(name)))
        if by:
            with self._lock:
                self._all.append(Definition(task, by))

    def current(self) -> list[Definition[T]]:
        """What still holds: the definitions of modules that were executed anew are forgotten."""
        with self._lock:
            self._all = [each for each in self._all if all(one.is_current for one in each.by)]
            return list(self._all)


def _importing(frame: FrameType | None) -> str | None:
    """The module whose own lines are being executed: the innermost, when imports are nested."""
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            return str(frame.f_globals.get("__name__"))
        frame = frame.f_back
    return None


def _execution(module: str) -> Execution | None:
    there = sys.modules.get(module)
    return None if there is None else Execution(module, getattr(there, "__spec__", None))


tasks: Final[Definitions[Any]] = Definitions()
