"""``conductor generate-task``."""

from __future__ import annotations

import keyword
import re
import sys
from typing import TYPE_CHECKING

import click

from conductor_cli.cli import options, output

if TYPE_CHECKING:
    from pathlib import Path

    from conductor_cli.config import Config


@click.command("generate-task", cls=options.Command, short_help="Write a new module with a task.")
@click.argument("name")
@options.json_flag
@click.pass_obj
def generate_task(given: options.Given, name: str, as_json: bool) -> None:
    """Write a new module with a task called NAME, beside the first of [tasks] modules."""
    from conductor_cli.cli import session, templates

    _refuse_wrong(name)
    config = session.settings(given, database=False)
    package = _package(config)
    module = f"{package}.{name}" if package else name
    path = config.folder.joinpath(*module.split(".")).with_suffix(".py")
    if module in sys.stdlib_module_names:
        raise options.Refused(
            f"{module!r} is a module of Python's standard library, and Python would take that one; "
            f"choose another name, such as {f'{name}_task'!r}."
        )
    if path.with_suffix("").is_dir():
        raise options.Refused(f"{path.with_suffix('')} is a package; choose another name.")
    if not templates.write(path, templates.read("task.py.txt").replace("NAME", name)):
        raise options.Refused(f"{path} exists; it is left as it is. Choose another name.")
    covered = templates.covers(config.tasks.modules, module)
    if as_json:
        output.json({"path": str(path), "module": module, "covered": covered})
        return
    output.say(f"Wrote {path}")
    if not covered:
        modules = ", ".join(f'"{each}"' for each in [*config.tasks.modules, module])
        output.say(f"Add it to the configuration: under [tasks], modules = [{modules}]")
    output.say(f"Try it: conductor run {name}")


def _refuse_wrong(name: str) -> None:
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", name) and not keyword.iskeyword(name):
        return
    better = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
    hint = f" Perhaps {better!r}?" if better.isidentifier() and better != name else ""
    raise options.Refused(
        f"{name!r} cannot be the name of a function and its module: letters, digits and "
        f"underscores, and no word of Python's own.{hint}"
    )


def _package(config: Config) -> str:
    """The package that the first module is, or is in; empty for the folder itself."""
    if not config.tasks.modules:
        return ""
    first = config.tasks.modules[0]
    root = first.removesuffix(".*")
    if first != root or _folder(config, root).is_dir():
        return root
    return root.rpartition(".")[0]


def _folder(config: Config, module: str) -> Path:
    return config.folder.joinpath(*module.split("."))
