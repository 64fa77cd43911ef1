"""The guide for operators names nothing that does not exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import pytest

import conductor_cli
from conductor_cli.cli import root
from conductor_cli.config import Config
from conductor_cli.sections import KEYS
from conductor_cli.telemetry.catalogue import CATALOGUE, HISTOGRAMS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
GUIDE: Final = (ROOT / "docs" / "operations.md").read_text()
CODE: Final = re.findall(r"`([^`\n]+)`", re.sub(r"(?s)```.*?```", "", GUIDE))
FILES: Final = ("conductor.toml", "conductor.service")


def metrics() -> set[str]:
    counters = {f"conductor_{n.replace('.', '_')}_total" for n, e in CATALOGUE.items() if e.counted}
    source = "".join(file.read_text() for file in Path(conductor_cli.__file__).parent.rglob("*.py"))
    gauges = set(re.findall(r'"(conductor_[a-z_]+)"', source))
    return counters | gauges | {each.metric for each in HISTOGRAMS.values()}


def commands() -> Iterator[list[str]]:
    for text in CODE:
        if text.startswith("conductor "):
            yield text.split()[1:]


def test_it_names_metrics_that_exist() -> None:
    named = set(re.findall(r"\bconductor_[a-z_]+", GUIDE))
    assert len(named) > 15
    assert named <= metrics()


def test_it_names_settings_and_events_that_exist() -> None:
    named = {text for text in CODE if re.fullmatch(r"[a-z_]+\.[a-z_]+", text)} - {*FILES}
    assert len(named & set(KEYS)) > 5
    assert len(named & set(CATALOGUE)) > 12
    assert named <= {*KEYS, *CATALOGUE}


def test_it_names_variables_that_exist() -> None:
    known = {f"CONDUCTOR_{key.replace('.', '_').upper()}" for key in KEYS}
    assert set(re.findall(r"\bCONDUCTOR_[A-Z_]+", GUIDE)) <= known


@pytest.mark.parametrize("words", [pytest.param(each, id=" ".join(each)) for each in commands()])
def test_it_names_commands_and_options_that_exist(words: list[str]) -> None:
    command: click.Command = root
    context = click.Context(root)
    while words and isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        if found is None:
            break
        command, words = found, words[1:]
    assert command is not root, words
    options = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= options


def test_it_tells_the_defaults() -> None:
    rows = re.findall(r"^\|[^|]+\| ([\w.]+) \| `([\w.]+)` \|$", GUIDE, re.MULTILINE)
    assert len(rows) == 7
    for shown, key in rows:
        section, _, name = key.partition(".")
        default = getattr(getattr(Config(), section), name)
        assert shown == ("adapts" if default is None else f"{default:.15g}"), key


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", GUIDE)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
