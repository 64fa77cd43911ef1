"""`python -m bench`: see README.md."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench import budgets, postgres, report
from bench.measures import MEASURES
from bench.roster import PEERS
from bench.stage import Plan, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.peer import Peer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measures; exit code 1 when a peer failed somewhere, 2 for bad usage."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `with` blocks clean up
    try:
        with postgres.running(options.postgres) as server:
            stage = Stage(server, _peers(options.peers), _plan(options))
            _measure(stage, options.measure)
    except postgres.PostgresFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    print("\n" + report.text(stage) + "\n" + budgets.text(stage))
    if options.json:
        report.write(options.json, stage)
    return 1 if stage.failures else 0


def _measure(stage: Stage, wanted: str) -> None:
    stage.prepare()
    for name, module in MEASURES.items():
        if wanted in (name, "all"):
            module.measure(stage)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=_DESCRIPTION)
    parser.add_argument("measure", nargs="?", default="all", choices=[*MEASURES, "all"])
    parser.add_argument("--quick", action="store_true", help="a smoke run: small, one round")
    parser.add_argument("--peers", default=",".join(PEERS), help="of: %(default)s")
    parser.add_argument("--rounds", type=_positive, help="default 3, quick 1")
    parser.add_argument("--count", type=_positive, help="executions; default 20000, quick 2000")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument(
        "--postgres", type=Path, metavar="DIR", help="Postgres programs; default: newest found"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.peers.split(",") if name not in PEERS]
    if unknown:
        parser.error(f"unknown peers {', '.join(unknown)}; there are: {', '.join(PEERS)}")
    return options


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word} is not at least 1")
    return number


def _peers(names: str) -> list[Peer]:
    return [PEERS[name] for name in dict.fromkeys(names.split(","))]


def _plan(options: argparse.Namespace) -> Plan:
    quick = options.quick
    return Plan(
        rounds=options.rounds or (1 if quick else 3),
        count=options.count or (2_000 if quick else 20_000),
        single_seconds=0.5 if quick else 2.0,
        latency_jobs=20 if quick else 100,
        idle_seconds=4.0 if quick else 20.0,
        settle_seconds=1.0 if quick else 3.0,
    )


_DESCRIPTION = "Measures Conductor and its peers, interleaved in one run, on its own Postgres."

if __name__ == "__main__":
    sys.exit(main())
