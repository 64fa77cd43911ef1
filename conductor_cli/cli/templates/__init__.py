"""Files that ``conductor init`` and ``conductor generate-task`` write."""

from __future__ import annotations

import importlib.resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def read(name: str) -> str:
    """The text of a template."""
    return (importlib.resources.files(__name__) / name).read_text("utf-8")


def write(path: Path, text: str) -> bool:
    """Write a new file, its folder too if need be; False when there is one already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def covers(patterns: Iterable[str], module: str) -> bool:
    """Whether the modules that a configuration names bring this one."""
    return any(
        module == pattern or (pattern.endswith(".*") and module.startswith(pattern[:-1]))
        for pattern in patterns
    )
