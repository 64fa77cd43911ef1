"""`python -m bench`: see README.md."""

from __future__ import annotations

import argparse
import shlex
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
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parse(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `with` blocks clean up
    try:
        with postgres.running(options.postgres, options.data) as server:
            stage = Stage(server, _peers(options), _plan(options))
            _measure(stage, options.measure)
    except postgres.PostgresFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    command = shlex.join(["python", "-m", "bench", *words])
    whole = report.text(stage, command)
    if options.data is None:  # the budgets are of a machine with its disk
        whole += "\n" + budgets.text(stage)
    print("\n" + whole)
    if options.markdown:
        options.markdown.write_text(whole)
    if options.json:
        report.write(options.json, stage, command)
    return 1 if stage.failures else 0


def _measure(stage: Stage, wanted: Sequence[str]) -> None:
    stage.prepare()
    for name, module in MEASURES.items():
        if name in wanted or "all" in wanted:
            module.measure(stage)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=_DESCRIPTION)
    parser.add_argument(
        "measure", nargs="*", default=["all"], metavar="MEASURE", help=f"all, {', '.join(MEASURES)}"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run: small, one round")
    parser.add_argument("--peers", help=f"of: {','.join(PEERS)}; default all, quick: the main ones")
    parser.add_argument("--rounds", type=_positive, help="default 3, quick 1")
    parser.add_argument(
        "--count",
        type=_positive,
        help="executions; default 20000, quick 2000; of crowd: the others, default 1000000, "
        "quick 20000",
    )
    parser.add_argument(
        "--seconds", type=_positive, help="how long snapshot holds it; default 300, quick 10"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the report there too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument(
        "--postgres", type=Path, metavar="DIR", help="Postgres programs; default: newest found"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="where Postgres keeps its data; default: bench/.work",
    )
    options = parser.parse_args(arguments)
    _check(parser, "measures", options.measure, [*MEASURES, "all"])
    _check(parser, "peers", _names(options), list(PEERS))
    return options


def _check(
    parser: argparse.ArgumentParser, kind: str, named: Sequence[str], known: Sequence[str]
) -> None:
    unknown = [name for name in named if name not in known]
    if unknown:
        parser.error(f"unknown {kind} {', '.join(unknown)}; there are: {', '.join(known)}")


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word} is not at least 1")
    return number


def _peers(options: argparse.Namespace) -> list[Peer]:
    return [PEERS[name] for name in dict.fromkeys(_names(options))]


def _names(options: argparse.Namespace) -> list[str]:
    if options.peers:
        return str(options.peers).split(",")
    return [name for name, peer in PEERS.items() if not (options.quick and peer.extra)]


def _plan(options: argparse.Namespace) -> Plan:
    quick = options.quick
    return Plan(
        brief=quick,
        rounds=options.rounds or (1 if quick else 3),
        count=options.count or (2_000 if quick else 20_000),
        crowd=options.count or (20_000 if quick else 1_000_000),
        single_seconds=0.5 if quick else 2.0,
        latency_jobs=20 if quick else 100,
        load_seconds=2.0 if quick else 10.0,
        idle_seconds=4.0 if quick else 20.0,
        settle_seconds=1.0 if quick else 3.0,
        snapshot_seconds=float(options.seconds or (10 if quick else 300)),
        starts=2 if quick else 5,
    )


_DESCRIPTION = "Measures Conductor and its peers, interleaved in one run, on its own Postgres."

if __name__ == "__main__":
    sys.exit(main())
