"""The database's clock, moved by tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from conductor_cli.database import Connection


class Clock:
    """Moves conductor.now() for every session of one database.

    It goes on from where it is moved to, until it is stopped.
    """

    def __init__(self, url: str) -> None:
        self._conn: Connection = psycopg.connect(url, autocommit=True)
        self._conn.execute("set timezone to 'UTC'")
        self._offset = timedelta(0)
        self._stopped: datetime | None = None

    def now(self) -> datetime:
        """What it shows."""
        row = self._conn.execute("select conductor.now()").fetchone()
        assert row is not None
        found: datetime = row[0]
        return found

    def advance(self, seconds: float) -> None:
        """Move it on (or back, by less than nothing)."""
        self._offset += timedelta(seconds=seconds)
        if self._stopped is not None:
            self._stopped += timedelta(seconds=seconds)
        self._replace()

    def set(self, moment: datetime) -> None:
        """Move it to a moment."""
        self._offset = moment - datetime.now(UTC)
        if self._stopped is not None:
            self._stopped = moment
        self._replace()

    def stop(self, moment: datetime | None = None) -> datetime:
        """Let it stand still, at ``moment`` or where it is; returns what it shows."""
        self._stopped = moment if moment is not None else self.now()
        self._offset = self._stopped - datetime.now(UTC)
        self._replace()
        return self._stopped

    def go(self) -> None:
        """Let it go on from where it was stopped."""
        if self._stopped is not None:
            moment, self._stopped = self._stopped, None
            self.set(moment)

    def close(self) -> None:
        self._conn.close()

    def _replace(self) -> None:
        body = (
            sql.SQL("statement_timestamp() + {}").format(self._offset)
            if self._stopped is None
            else sql.SQL("{}::timestamptz").format(self._stopped)
        )
        self._conn.execute(
            sql.SQL(
                "create or replace function conductor.now() returns timestamptz "
                "language sql stable parallel safe return {}"
            ).format(body)
        )
