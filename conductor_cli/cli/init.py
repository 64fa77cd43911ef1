"""``conductor init``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import click

from conductor_cli.cli import options, output

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NOTHING_CHANGED: Final = 1
PACKAGE: Final = "tasks"


@click.command(cls=options.Command, short_help="Write a configuration and sample tasks.")
@click.argument("folder", default=".", metavar="[DIR]")
@options.json_flag
def init(folder: str, as_json: bool) -> int:
    """Write conductor.toml and a package of sample tasks into DIR (default: here).

    What is there already is left as it is, and stays importable: beside a tasks.py the samples go
    into a package of another name. Exit code 1 if there was nothing to write.
    """
    from pathlib import Path

    from conductor_cli.cli import templates

    place = Path(folder)
    _refuse_file(place)
    package = _package(place)
    files = {
        place / "conductor.toml": _configuration(package),
        place / package / "__init__.py": '"""The tasks of this project, one module for each."""\n',
        place / package / "sample.py": templates.read("sample.py"),
    }
    written = [path for path, text in files.items() if templates.write(path, text)]
    kept = [path for path in files if path not in written]
    if as_json:
        output.json({"written": list(map(str, written)), "kept": list(map(str, kept))})
    else:
        _tell(place, package, written, kept)
    return 0 if written else NOTHING_CHANGED


def _refuse_file(place: Path) -> None:
    if place.exists() and not place.is_dir():
        raise options.Refused(f"{os.fspath(place)!r} is a file; name a folder.")


def _package(place: Path) -> str:
    """Where the samples go: a package of this name would hide a module of this name."""
    names = (PACKAGE, *(f"sample_tasks{number or ''}" for number in range(1000)))
    return next(name for name in names if not _is_taken(place, name))


def _is_taken(place: Path, name: str) -> bool:
    package = place / name
    return package.with_name(f"{name}.py").exists() or (package.exists() and not package.is_dir())


def _configuration(package: str) -> str:
    """The template; where there is a tasks.py, that is what it serves."""
    from conductor_cli.cli import templates

    text = templates.read("conductor.toml")
    if package == PACKAGE:
        return text
    return text.replace(
        'The modules that define tasks; "tasks.*" are all of the package tasks/ beside this file.',
        f'The modules that define tasks; "{package}.*" would be all of the package {package}/.',
    ).replace('modules = ["tasks.*"]', 'modules = ["tasks"]')


def _tell(place: Path, package: str, written: list[Path], kept: list[Path]) -> None:
    from conductor_cli.cli import templates

    for path in written:
        output.say(f"Wrote {path}")
    for path in kept:
        output.tell(f"{path} exists; it is left as it is.")
    if not written:
        output.tell("There was nothing to write.")
        return
    if package != PACKAGE:
        module = place / f"{PACKAGE}.py"
        taken = module if module.exists() else place / PACKAGE
        output.tell(f"{taken} exists; it is left as it is, and the samples are in {package}/.")
    modules = _modules(place)
    served = templates.covers(modules, f"{package}.sample")
    if not served:
        shown = ", ".join(f'"{each}"' for each in [*modules, f"{package}.*"])
        output.say(
            f"The configuration does not name the samples: under [tasks], modules = [{shown}] does."
        )
    go = "" if place.resolve() == type(place).cwd() else f"  cd {place}\n"
    output.say(f"\nNext:\n{go}  conductor tasks\n  conductor start-server")
    if served:
        output.say(
            "and, from another terminal:\n"
            f'{go}  conductor invoke greet \'{{"name": "World"}}\' --wait'
        )


def _modules(place: Path) -> Sequence[str]:
    """What the configuration names. Raises ConfigError."""
    from conductor_cli.config import load

    return load(place / "conductor.toml", require_database=False).tasks.modules
