"""The way of clients to Postgres, through which only Conductor's own errors come out.

Services do not come this way: they decide by the driver's errors what to do next.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from conductor_cli import driver_errors, errors, migrate
from conductor_cli.store import holders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from conductor_cli.database import Connection, Database

R = TypeVar("R")


class Door:
    """One database, as clients may ask it. ``with door:`` is around what goes another way."""

    __slots__ = ("_database",)

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> None:
        """Nothing is to be done before."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is None or not isinstance(error, Exception):
            return
        if isinstance(error, errors.DatabaseBusy):
            raise self._with_holders(error) from error.__cause__
        if driver_errors.is_of_driver(error):
            raise self._told(error) from error

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """As ``Database.transaction``."""
        with self, self._database.transaction() as conn:
            yield conn

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """As ``Database.connection``."""
        with self, self._database.connection() as conn:
            yield conn

    def retrying(self, work: Callable[[Connection], R]) -> R:
        """As ``Database.retrying``."""
        with self:
            return self._database.retrying(work)

    def told(self, error: BaseException) -> BaseException:
        """The error a user should read in place of this one."""
        return self._told(error) if driver_errors.is_of_driver(error) else error

    def _told(self, error: BaseException) -> errors.ConductorError:
        found = driver_errors.of_url(error, self._database.url)
        if isinstance(found, errors.DatabaseBusy):
            return self._with_holders(found)
        if driver_errors.is_of_schema(error):
            return self._schema(found)
        return found

    def _schema(self, found: errors.ConductorError) -> errors.ConductorError:
        """A statement was not understood: too new a schema, too old a one, or none."""
        try:
            migrate.check(self._database)
        except (errors.SchemaMissing, errors.SchemaTooNew) as better:
            return better
        except Exception:  # what is known stays said; the check has only its own reason
            return found
        return found

    def _with_holders(self, busy: errors.DatabaseBusy) -> errors.DatabaseBusy:
        """The same, with the transactions that hold locks on Conductor's tables."""
        held: list[Any] = []
        with suppress(Exception), self._database.connection(1.0) as conn:
            held = holders.oldest(conn)
        if not held:
            return busy
        return type(busy)(f"{busy} Locks on its tables are held by {', '.join(map(str, held))}.")
