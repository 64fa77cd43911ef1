"""Index the source files of the running Python's standard library: one execution per file.

python stdlib_index.py enqueue     # a batch of invocations, all or none
conductor drain                    # or: conductor start-server, as many as you like
python stdlib_index.py totals      # what the executions found
python stdlib_index.py plain       # the same by a plain loop, to compare
"""

import ast
import json
import sys
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from conductor_cli import Conductor, Context, Fail, cron, task

# Old code in the library warns when it is parsed; that is not what this is about.
warnings.simplefilter("ignore", SyntaxWarning)
warnings.simplefilter("ignore", DeprecationWarning)

LIBRARY = Path(sysconfig.get_path("stdlib"))


@dataclass(frozen=True)
class Index:
    """What one file defines."""

    path: str
    lines: int
    classes: int
    functions: int
    imports: int


@task(queue="index")
def index_file(path: str) -> Index:
    """Read and parse one file of the library. A file that does not parse never will: no retry."""
    try:
        with tokenize.open(LIBRARY / path) as file:
            source = file.read()
        return _index(path, ast.walk(ast.parse(source)), source.count("\n"))
    except (SyntaxError, ValueError) as error:
        raise Fail(f"{path} does not parse: {error}") from error


@task(queue="index", triggers=[cron("*/10 * * * * *", name="every_ten_seconds")])
def summarise(ctx: Context) -> dict[str, int]:
    """What has been done so far; runs every ten seconds while a server does."""
    totals = found(ctx.conductor)
    ctx.logger.info("indexed so far", **totals)
    return totals


def found(conductor: Conductor) -> dict[str, int]:
    """The totals of all executions that have ended."""
    everything = len(files())
    done = conductor.list(task=index_file, state="completed", limit=everything)
    failed = conductor.list(task=index_file, state="failed", limit=everything)
    return add_up((Index(**execution.result) for execution in done), len(failed))


def plainly() -> dict[str, int]:
    """The same totals from a single thread, without Conductor."""
    indexed, failed = [], 0
    for path in files():
        try:
            indexed.append(index_file(path=path))
        except Fail:
            failed += 1
    return add_up(indexed, failed)


def files() -> list[str]:
    """The library's source files, without what has been installed into it."""
    found = (p.relative_to(LIBRARY) for p in LIBRARY.rglob("*.py"))
    return sorted(str(p) for p in found if not {"site-packages", "dist-packages"} & set(p.parts))


def add_up(indexed: Iterable[Index], failed: int) -> dict[str, int]:
    totals = Counter(files=0, failed=failed, lines=0, classes=0, functions=0, imports=0)
    for one in indexed:
        totals += Counter({**asdict(one), "path": 0, "files": 1})
    return {name: totals[name] for name in sorted({*totals, "failed"})}


def enqueue() -> int:
    """One execution per file, in one transaction."""
    with Conductor.from_config() as conductor:
        conductor.ensure_installed()
        return len(conductor.invoke_many(index_file, [{"path": path} for path in files()]))


def _index(path: str, nodes: Iterator[ast.AST], lines: int) -> Index:
    kinds = Counter(type(node) for node in nodes)
    return Index(
        path=path,
        lines=lines,
        classes=kinds[ast.ClassDef],
        functions=kinds[ast.FunctionDef] + kinds[ast.AsyncFunctionDef],
        imports=kinds[ast.Import] + kinds[ast.ImportFrom],
    )


def main(command: str) -> None:
    if command == "enqueue":
        print(f"{enqueue()} files are waiting: run `conductor drain`.")
    elif command == "plain":
        print(json.dumps(plainly()))
    else:
        with Conductor.from_config() as conductor:
            print(json.dumps(found(conductor)))


if __name__ == "__main__":
    # Tasks belong to the module of that name, not to __main__.
    import stdlib_index

    stdlib_index.main(sys.argv[1] if len(sys.argv) > 1 else "totals")
