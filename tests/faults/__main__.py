"""`python -m tests.faults`: break things on purpose, and tell what held."""

from __future__ import annotations

import argparse
import contextlib
import logging
import platform
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from conductor_cli.embedded import programs
from tests.faults import table
from tests.faults.catalogue import SCENARIOS, Scenario
from tests.faults.cluster import Clusters
from tests.faults.scenarios import ELSEWHERE
from tests.faults.stage import CannotRun, staged
from tests.faults.table import Result


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the scenarios; exit code 1 when one failed, 2 for bad usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parse(words)
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # outages are the point
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `with` blocks clean up
    chosen = [SCENARIOS[name] for name in options.names] or list(SCENARIOS.values())
    began = time.monotonic()
    results = []
    with contextlib.closing(Clusters(options.postgres or programs.find())) as clusters:
        for each in chosen:
            results.append(play(each, clusters, short=options.short))
            print(table.plain(results[-1]), flush=True)
    notes = _notes(words, results, clusters.version, time.monotonic() - began)
    print("\n" + "\n".join(notes))
    if options.markdown:
        options.markdown.write_text(table.markdown(results, notes))
    return int(any(result.failed for result in results))


def play(scenario: Scenario, clusters: Clusters, *, short: bool) -> Result:
    """One scenario from an empty stage to its line, whatever happens in it."""
    began = time.monotonic()
    with staged(clusters, short=short) as stage:
        reason = None
        try:
            scenario.play(stage)
        except CannotRun as error:
            reason = str(error)
        except Exception as error:
            traceback.print_exc()
            stage.line.broken.append(f"{type(error).__name__}: {str(error)[:300]}")
        line = stage.line
    return Result(scenario, line, time.monotonic() - began, stage.shortened, reason)


def _notes(
    words: Sequence[str], results: Sequence[Result], version: str, seconds: float
) -> list[str]:
    failed = sum(result.failed for result in results)
    unable = sum(result.reason is not None for result in results)
    command = shlex.join(["python", "-m", "tests.faults", *words])
    notes = [
        f"{len(results)} scenarios in {seconds:.0f} s: {len(results) - failed - unable} hold, "
        f"{failed} fail, {unable} could not run here.",
        f"`{command}` on {time.strftime('%Y-%m-%d', time.gmtime())} at {_revision()}: Postgres "
        f"{version}, Python {platform.python_version()}, {platform.system()} {platform.machine()}.",
    ]
    shortened = {f"{r.scenario.name}: {', '.join(r.shortened)}" for r in results if r.shortened}
    if shortened:
        notes += ["Shortened:", *(f"- {each}" for each in sorted(shortened))]
    return [*notes, "Not in this table:", *(f"- {each}" for each in ELSEWHERE)]


def _revision() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], check=False, capture_output=True, text=True,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    return done.stdout.strip() or "an unknown revision"


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--short", action="store_true", help="each fault, less of it: 8 minutes")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, too")
    parser.add_argument(
        "--postgres", type=Path, metavar="DIR", help="Postgres programs; default: as embedded"
    )
    options = parser.parse_args(words)
    unknown = [name for name in options.names if name not in SCENARIOS]
    if unknown:
        parser.error(f"no such scenario: {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
