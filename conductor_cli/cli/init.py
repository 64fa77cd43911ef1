"""``conductor init``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import click

from conductor_cli.cli import options, output

if TYPE_CHECKING:
    from pathlib import Path

NOTHING_CHANGED: Final = 1


@click.command(cls=options.Command, short_help="Write a configuration and sample tasks.")
@click.argument("folder", default=".", metavar="[DIR]")
@options.json_flag
def init(folder: str, as_json: bool) -> int:
    """Write conductor.toml and a package of sample tasks into DIR (default: here).

    What is there already is left as it is. Exit code 1 if that was everything.
    """
    from pathlib import Path

    from conductor_cli.cli import templates

    place = Path(folder)
    files = {
        place / "conductor.toml": templates.read("conductor.toml"),
        place / "tasks" / "__init__.py": '"""The tasks of this project, one module for each."""\n',
        place / "tasks" / "sample.py": templates.read("sample.py"),
    }
    _refuse_file(place)
    written = [path for path, text in files.items() if templates.write(path, text)]
    kept = [path for path in files if path not in written]
    if as_json:
        output.json({"written": list(map(str, written)), "kept": list(map(str, kept))})
    else:
        _tell(place, written, kept)
    return 0 if written else NOTHING_CHANGED


def _refuse_file(place: Path) -> None:
    if place.exists() and not place.is_dir():
        raise options.Refused(f"{os.fspath(place)!r} is a file; name a folder.")


def _tell(place: Path, written: list[Path], kept: list[Path]) -> None:
    for path in written:
        output.say(f"Wrote {path}")
    for path in kept:
        output.tell(f"{path} exists; it is left as it is.")
    if not written:
        output.tell("There was nothing to write.")
        return
    go = "" if place.resolve() == type(place).cwd() else f"  cd {place}\n"
    output.say(
        f"\nNext:\n{go}  conductor start-server\n"
        "and, from another terminal:\n"
        f'{go}  conductor invoke greet \'{{"name": "World"}}\' --wait'
    )
