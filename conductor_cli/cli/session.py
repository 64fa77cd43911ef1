"""From what was given to a client whose database answers and has the right schema."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from conductor_cli import config, database, errors, loading, migrate
from conductor_cli.cli import output
from conductor_cli.client import Conductor
from conductor_cli.service import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from conductor_cli.catalog import TaskSet
    from conductor_cli.cli.options import Given
    from conductor_cli.config import Config
    from conductor_cli.database import Database

EMBEDDED: Final = "embedded"
PATIENCE: Final = 4.5  # seconds to try again; the last try may take five more
PAUSE: Final = 0.2


def settings(
    given: Given, flags: Mapping[str, object] = MappingProxyType({}), *, database: bool = True
) -> Config:
    """The configuration; ``database``: one must be named. Raises ConfigError."""
    overrides = {"database.url": given.database_url, **flags}
    return config.load(given.config, overrides=overrides, require_database=database)


def tasks(settings: Config, tell: Callable[[str], None] | None = output.tell) -> TaskSet:
    """The tasks of the modules that the configuration names. Raises TaskDefinitionError.

    ``tell`` hears of modules without tasks; None: for servers, which log them. What modules print
    then goes to stderr, because stdout has the command's answer.
    """
    aside = nullcontext() if tell is None else redirect_stdout(sys.stderr)
    with aside:
        found = loading.load(settings.tasks.modules, str(settings.folder))
    if tell is not None:
        for warning in found.warnings:
            tell(f"Warning: {output.plain(warning)}")
    return found.tasks


@contextmanager
def located(settings: Config, tell: Callable[[str], None] | None = None) -> Iterator[Config]:
    """The settings with the address of the database: "embedded" is started, or joined.

    ``tell`` hears where its data are. Raises ConfigError, DatabaseUnavailable.
    """
    if settings.database.url != EMBEDDED:
        yield settings
        return
    from conductor_cli import embedded

    with embedded.start(settings.folder) as share:
        if tell is not None:
            tell(share.notice)
        yield replace(settings, database=replace(settings.database, url=share.url))


@contextmanager
def client(given: Given) -> Iterator[Conductor]:
    """A client, ready to use. Raises SchemaMissing, SchemaTooNew, DatabaseUnavailable."""
    asked = settings(given)
    with located(asked) as found, Conductor.from_config(found) as conductor, conductor.door:
        reach(conductor.database)
        if asked.database.url == EMBEDDED:
            migrate.upgrade(conductor.database, breaking=False)  # nobody else's schema
        else:
            migrate.check(conductor.database)
        yield conductor


def reach(database_: Database) -> None:
    """Return when Postgres answers; raise DatabaseUnavailable when it has not in ten seconds."""
    deadline = Deadline(PATIENCE)
    while True:
        try:
            return database_.connect("command").close()
        except Exception as error:
            refused = isinstance(error, errors.CredentialsRefused)
            if refused or deadline.has_passed or not database.is_transient(error):
                raise
        time.sleep(PAUSE)


def where(settings: Config) -> str:
    """The database, for people: never its password."""
    if settings.database.url != EMBEDDED:
        return database.describe(settings.database.url)
    from conductor_cli.embedded import place

    return f"embedded, for development and tests; data in {place.of(settings.folder).data}"
