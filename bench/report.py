"""The report: one table per case, medians over the rounds, ratios within the run."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from bench.environments import ROOT
from bench.measures import MEASURES
from bench.roster import PEERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from bench.measures.columns import Column, Table
    from bench.stage import Cell, Stage

CONDUCTOR: Final = "conductor"
FLOOR: Final = "bare"


def text(stage: Stage, command: str) -> str:
    """The whole report, in Markdown."""
    parts = [_heading(stage, command)]
    for name, module in MEASURES.items():
        parts += [
            _table(stage, name, table) for table in module.TABLES if _rows(stage, name, table)
        ]
    if stage.failures:
        parts.append("\n".join(_failures(stage)))
    return "\n\n".join(parts) + "\n"


def as_json(stage: Stage, command: str) -> str:
    """Every sample, for programs that compare runs."""
    samples = [
        asdict(s.cell) | {"round": s.round, "figures": dict(s.figures)} for s in stage.samples
    ]
    failures = [asdict(cell) | {"message": words} for cell, words in stage.failures.items()]
    run = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "revision": _revision(),
        "machine": _machine(),
        "postgres": stage.postgres.version,
        "plan": asdict(stage.plan),
        "versions": stage.versions,
        "samples": samples,
        "failures": failures,
    }
    return json.dumps(run, indent=1) + "\n"


def medians(stage: Stage, measure: str, case: str) -> dict[Cell, dict[str, float | None]]:
    """Each cell of a case with the median of every figure over its rounds."""
    samples: dict[Cell, list[dict[str, float | None]]] = {}
    for sample in stage.samples:
        if (sample.cell.measure, sample.cell.case) == (measure, case):
            samples.setdefault(sample.cell, []).append(dict(sample.figures))
    return {cell: _median(figures) for cell, figures in samples.items()}


def _median(figures: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for key in figures[0]:
        values = [value for one in figures if (value := one[key]) is not None]
        found[key] = statistics.median(values) if values else None
    return found


def _heading(stage: Stage, command: str) -> str:
    plan = stage.plan
    date = time.strftime("%Y-%m-%d", time.gmtime())
    lines = [
        f"# Conductor and its peers: medians of {plan.rounds}",
        "",
        f"Measured on {date} with `{command}`{_revision()}: {_machine()}; Postgres "
        f"{stage.postgres.version} on the same machine, fsync and synchronous_commit on.",
        "",
        "Costs are per execution. Only ratios within one run mean anything.",
        "",
    ]
    for name, versions in stage.versions.items():
        note = PEERS[name].note
        lines.append(f"- {name}: {versions}" + (f" ({note})" if note else ""))
    return "\n".join(lines)


def _revision() -> str:
    """The checkout's commit, as words to follow the command; empty outside of git."""
    line = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(
            line, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return f" at {found.stdout.strip()}"


def _machine() -> str:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"load {load:.1f} at the end"
    )


def _rows(stage: Stage, measure: str, table: Table) -> list[tuple[Cell, dict[str, float | None]]]:
    """Best first."""
    key = table.columns[0].key
    found = list(medians(stage, measure, table.case).items())
    found.sort(key=lambda row: row[1][key] or 0.0, reverse=table.higher_is_better)
    return found


def _table(stage: Stage, measure: str, table: Table) -> str:
    rows = _rows(stage, measure, table)
    lead, *rest = table.columns
    bases = _bases(rows, lead)
    spread = stage.plan.rounds > 1
    heading = ["", "settings", lead.heading, *(["range"] if spread else [])]
    lines = [[*heading, *(f"x {name}" for name in bases), *(column.heading for column in rest)]]
    for cell, figures in rows:
        value = figures[lead.key]
        line = [cell.peer, cell.settings, _number(value, lead)]
        line += [_range(stage, cell, lead)] if spread else []
        line += [_ratio(value, base) for base in bases.values()]
        lines.append(line + [_number(figures[column.key], column) for column in rest])
    return f"## {table.title}\n\n{_aligned(lines)}"


def _bases(
    rows: Sequence[tuple[Cell, dict[str, float | None]]], lead: Column
) -> dict[str, float | None]:
    """What ratios are formed by: Conductor, without it the best peer; and the machine's floor."""
    real = [row for row in rows if row[0].peer != FLOOR]
    own = [row for row in real if row[0].peer == CONDUCTOR and row[0].settings == "default"]
    first = own or real
    floor = [row for row in rows if row[0].peer == FLOOR and row[0].settings == "default"]
    return {cell.peer: figures[lead.key] for cell, figures in (*first[:1], *floor)}


def _ratio(value: float | None, base: float | None) -> str:
    return f"{value / base:.2f}" if value is not None and base else "-"


def _range(stage: Stage, cell: Cell, column: Column) -> str:
    values = [
        value
        for sample in stage.samples
        if sample.cell == cell and (value := sample.figures[column.key]) is not None
    ]
    return f"{_number(min(values), column)}..{_number(max(values), column)}" if values else "-"


def _number(value: float | None, column: Column) -> str:
    return "-" if value is None else f"{value:,.{column.decimals}f}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = ["-" * width if i < 2 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join(
        "| " + " | ".join(_padded(line, widths)) + " |" for line in (lines[0], rule, *lines[1:])
    )


def _padded(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        word.ljust(width) if i < 2 else word.rjust(width)
        for i, (word, width) in enumerate(zip(line, widths, strict=True))
    ]


def _failures(stage: Stage) -> Iterator[str]:
    yield "## Failed\n"
    for cell, words in stage.failures.items():
        where = " ".join(part for part in (cell.measure, cell.case, cell.settings) if part)
        yield f"- {cell.peer}, {where}: {words}"


def write(path: Path, stage: Stage, command: str) -> None:
    """Write the samples to a JSON file."""
    path.write_text(as_json(stage, command))
