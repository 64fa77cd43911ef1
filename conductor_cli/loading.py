"""Loading the modules that hold tasks, and what is odd about them, in words."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from conductor_cli.catalog import TaskSet
from conductor_cli.defined import tasks as defined_tasks
from conductor_cli.errors import TaskDefinitionError
from conductor_cli.registry import Task, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import ModuleType

_HERE: Final = os.path.dirname(__file__) + os.sep
_LIBRARY: Final = os.path.dirname(os.__file__) + os.sep


@dataclass(frozen=True, slots=True)
class Loaded:
    """The tasks that were found, and what deserves a warning, a sentence each."""

    tasks: TaskSet
    warnings: Sequence[str]


def load(patterns: Sequence[str], folder: str | None = None) -> Loaded:
    """Import the modules named and return every task defined in one or below it.

    ``myapp.tasks.*`` imports all modules of a package, those in folders without ``__init__.py``
    too. ``folder`` goes on ``sys.path`` first. Raises TaskDefinitionError: a module that does not
    import, with the last line of its traceback and the place; a module that is not the project's.
    """
    if folder is not None and folder not in sys.path:
        sys.path.insert(0, folder)
    roots = {pattern.removesuffix(".*"): _load(pattern, folder) for pattern in patterns}
    found: dict[int, Task[..., Any]] = {}
    warnings = []
    for root, module in roots.items():
        here = [
            each.task
            for each in defined_tasks.current()
            if any(_is_below(name, root) for name in each.modules)
        ]
        found |= {id(task): task for task in here}
        if not here:
            warnings.append(_without_tasks(root, module))
    ordered = sorted(found.values(), key=lambda task: (task.module, task.place, task.name))
    return Loaded(TaskSet(ordered), warnings)


def load_modules(patterns: Sequence[str], folder: str | None = None) -> TaskSet:
    """The tasks of ``load``."""
    return load(patterns, folder).tasks


def _load(pattern: str, folder: str | None) -> ModuleType:
    root = pattern.removesuffix(".*")
    was_there = _top(root) in sys.modules
    module = _import(root, folder, was_there=was_there)
    for name in dict.fromkeys((_top(root), root)):
        if problem := _of_others(name, folder, was_there=was_there):
            raise TaskDefinitionError(problem)
    if pattern.endswith(".*"):
        for name in _below(root, getattr(module, "__path__", ()), set()):
            _import(name, folder, was_there=was_there)
    return module


def _below(package: str, places: Iterable[str], seen: set[str]) -> Iterator[str]:
    """The names of a package's modules, each to be imported before the next is asked for.

    Programs (``__main__``) are left out. ``seen``: folders, for links that lead in a circle.
    """
    for place in map(str, places):
        if (real := os.path.realpath(place)) in seen:
            continue
        seen.add(real)
        for name in sorted(_names_in(Path(place)) - {"__main__"}):
            full = f"{package}.{name}"
            yield full
            yield from _below(full, getattr(sys.modules.get(full), "__path__", ()), seen)


def _names_in(place: Path) -> set[str]:
    """The modules and packages in a folder; a folder without Python in it is none."""
    modules = {info.name for info in pkgutil.iter_modules([str(place)])}
    return modules | {
        inner.name
        for inner in _folders(place)
        if inner.name.isidentifier() and inner.name not in modules and _holds_python(inner)
    }


def _folders(place: Path) -> list[Path]:
    try:
        return [each for each in place.iterdir() if each.is_dir() and each.name != "__pycache__"]
    except OSError:
        return []


def _holds_python(place: Path) -> bool:
    """Whether the folder, or one in it, has a module. A link that leads upwards is not followed."""
    return any(any(name.endswith(".py") for name in files) for _, _, files in os.walk(place))


def _import(name: str, folder: str | None, *, was_there: bool) -> ModuleType:
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also sys.exit() at the end of a script
        problem = _import_problem(name, error, folder, was_there=was_there)
        raise TaskDefinitionError(problem) from error


def _of_others(name: str, folder: str | None, *, was_there: bool) -> str:
    """What to say when Python took a module that cannot be the one that is meant; else nothing."""
    module, top = sys.modules.get(name), _top(name)
    if module is None:
        return ""
    taken = _places(module)
    meant = None if folder is None else _file_of(name, Path(folder))
    is_library = top in sys.stdlib_module_names and not _is_in(taken, folder)
    if not is_library and (meant is None or not taken or _is_in(taken, str(meant))):
        return ""
    whose = "Python's standard library" if is_library else "another package"
    rather = f", not {meant}" if meant else ""
    where, why = ", ".join(taken) or "built in", _why_taken(meant, was_there=was_there)
    return (
        f"The module {name!r} ([tasks] modules) is {where} of {whose}{rather}, because {why}. Give "
        f"the project's module a name that nothing else has, such as {_another_name(name)!r}."
    )


def _why_taken(meant: Path | None, *, was_there: bool) -> str:
    if was_there:
        return "it had been imported already"
    if meant is not None and meant.is_dir() and not (meant / "__init__.py").exists():
        return "Python takes a folder without __init__.py only where nothing else has its name"
    return "it comes first on sys.path"


def _places(module: ModuleType) -> list[str]:
    """The file of a module, or the folders of a package without ``__init__.py``."""
    file = getattr(module, "__file__", None)
    return [str(file)] if file else [str(each) for each in getattr(module, "__path__", ())]


def _file_of(name: str, folder: Path) -> Path | None:
    """The file or the folder in the project that a module's name is read as."""
    place = folder.joinpath(*name.split("."))
    if (file := place.with_name(f"{place.name}.py")).is_file() and not place.is_dir():
        return file
    return place if place.is_dir() and _holds_python(place) else None


def _is_in(taken: Sequence[str], place: str | None) -> bool:
    if place is None:
        return False
    inside = os.path.realpath(place)
    real = [os.path.realpath(each) for each in taken]
    return any(each == inside or each.startswith(inside + os.sep) for each in real)


def _another_name(name: str) -> str:
    package, _, last = name.rpartition(".")
    return f"{package}_tasks.{last}" if package else f"{last}_tasks"


def _without_tasks(name: str, module: ModuleType) -> str:
    """What a person should know of a module that defines no task."""
    where = ", ".join(_places(module))
    if getattr(module, "__file__", None) is None:
        return (
            f"The module {name!r} ([tasks] modules) is a folder without __init__.py, {where}, and "
            f'no task was found in it. "{name}.*" imports all of its modules.'
        )
    told = f"The module {name!r} ([tasks] modules) defines no task: {where}."
    if others := sorted({each.module for each in vars(module).values() if isinstance(each, Task)}):
        return f"{told} It only imports tasks that {', '.join(others)} defines: name that module."
    if hasattr(module, "__path__"):
        return f'{told} "{name}.*" imports all modules of the package.'
    return told


def _import_problem(name: str, error: BaseException, folder: str | None, *, was_there: bool) -> str:
    where = _where(traceback.extract_tb(error.__traceback__))
    if isinstance(error, SyntaxError):
        where = f" at {error.filename}:{error.lineno}"
    last = _last_line(error).rstrip(".")
    told = f"The module {name!r} ([tasks] modules) does not import: {last}{where}."
    hint = _hint(name, error, folder, was_there=was_there)
    return f"{told} {hint}" if hint else told


def _where(frames: Sequence[traceback.FrameSummary]) -> str:
    """The last line of the program's own, and beside it the line of a library that raised."""
    shown = [each for each in frames if not _is_machinery(each.filename)]
    if not shown:
        return ""
    raised = shown[-1]
    own = next((each for each in reversed(shown) if not _is_library(each.filename)), raised)
    where = f" at {own.filename}:{own.lineno}"
    return where if own is raised else f"{where} (raised in {raised.filename}:{raised.lineno})"


def _is_library(file: str) -> bool:
    installed = any(part in ("site-packages", "dist-packages") for part in Path(file).parts)
    return installed or file.startswith(_LIBRARY)


def _hint(name: str, error: BaseException, folder: str | None, *, was_there: bool) -> str:
    if isinstance(error, ImportError) and "partially initialized module" in str(error):
        return "Two modules import each other: let one of them import the other inside a function."
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if not missing or not _is_below(name, missing):
        return ""
    if name.endswith(".py"):
        return f"A module is named without its ending: {name.removesuffix('.py')!r}."
    if problem := _of_others(_top(missing), folder, was_there=was_there):
        return problem
    meant = _nearest_module(missing, folder)
    looked = "Modules are looked for beside the configuration file and on PYTHONPATH."
    return f"Did you mean {meant!r}? {looked}" if meant else looked


def _nearest_module(missing: str, folder: str | None) -> str | None:
    """The module beside the one that is missing whose name is most like it."""
    package, _, last = missing.rpartition(".")
    if package:
        places = list(getattr(sys.modules.get(package), "__path__", ()))
    else:
        places = [] if folder is None else [folder]
    names = {name for place in places for name in _names_in(Path(place))}
    found = nearest(last, names)
    return ".".join(filter(None, (package, found[0]))) if found else None


def _is_machinery(file: str) -> bool:
    return file.startswith(("<frozen", _HERE, importlib.__path__[0]))


def _last_line(error: BaseException) -> str:
    if isinstance(error, TaskDefinitionError):
        return str(error)
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return " ".join(f"{type(error).__name__}: {text}".split())


def _top(name: str) -> str:
    return name.partition(".")[0]


def _is_below(module: str, root: str) -> bool:
    return module == root or module.startswith(f"{root}.")
