"""More sessions on the database of a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.sessions import Ears

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conductor_cli.database import Connection, Database


@pytest.fixture
def other(database: Database) -> Iterator[Connection]:
    """A second session."""
    with database.connect("other") as opened:
        yield opened


@pytest.fixture
def ears(database: Database) -> Iterator[Ears]:
    """Hears what everyone is told."""
    with database.connect("ears") as opened:
        yield Ears(opened, "conductor")
