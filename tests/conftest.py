"""A database for every test that wants one.

Real Postgres always: the one that CONDUCTOR_TEST_DATABASE_URL names (as a role that may create
databases), else servers of our own from the programs found here. One server a session, one
migrated template, a copy per test. Tests in store/ run on every kind of Postgres found
(``-k pg15`` chooses), the others on the first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from conductor_cli.database import Database
from tests.support.clock import Clock
from tests.support.postgres import Flavours, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conductor_cli.database import Connection

STORE: Final = Path(__file__).parent / "store"

# What the user has set for other programs, and for Conductor itself, is not meant for tests.
for _name in list(os.environ):
    if _name.startswith(("PG", "CONDUCTOR_")) and not _name.startswith("CONDUCTOR_TEST_"):
        del os.environ[_name]
os.environ.pop("DATABASE_URL", None)

_FLAVOURS: Final = Flavours()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "postgres" in metafunc.fixturenames and STORE in metafunc.definition.path.parents:
        metafunc.parametrize("postgres", _FLAVOURS.names, indirect=True)


def pytest_unconfigure() -> None:
    _FLAVOURS.close()


@pytest.fixture
def postgres(request: pytest.FixtureRequest) -> Server:
    """The server that this test's databases are on."""
    if not _FLAVOURS.names:
        pytest.fail("no Postgres: pip install -e '.[test]', or set CONDUCTOR_TEST_DATABASE_URL")
    return _FLAVOURS.server(getattr(request, "param", _FLAVOURS.names[0]))


@pytest.fixture
def database_url(postgres: Server) -> Iterator[str]:
    """A database of one's own with the current schema."""
    with postgres.migrated() as url:
        yield url


@pytest.fixture
def empty_database_url(postgres: Server) -> Iterator[str]:
    """A database of one's own with nothing in it."""
    with postgres.empty() as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The migrated database as the package sees it."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def conn(database: Database) -> Iterator[Connection]:
    """An autocommitting connection to it, set up as all of the package's are."""
    with database.connect("test") as opened:
        yield opened


@pytest.fixture
def clock(database_url: str) -> Iterator[Clock]:
    """The clock of that database, to be moved: advance(seconds), set(moment), stop()."""
    moved = Clock(database_url)
    yield moved
    moved.close()
