"""The way to Postgres, when it has been closed for a while."""

from __future__ import annotations

import time
from contextlib import suppress

from psycopg.conninfo import conninfo_to_dict

from conductor_cli.database import Database
from conductor_cli.errors import DatabaseUnavailable
from tests.faults.proxy import Proxy


def test_the_pool_does_not_wait_for_as_long_as_the_outage_has_lasted(database_url: str) -> None:
    parts = conninfo_to_dict(database_url)
    host, port = str(parts["host"]), parts.get("port", 5432)
    target = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, int(port))
    with Proxy(target) as proxy:
        to = f"postgresql://postgres@127.0.0.1:{proxy.port}/{parts['dbname']}?sslmode=disable"
        database = Database(to)
        with database.connection() as conn:
            conn.execute("select")
        proxy.refuse()
        began = time.monotonic()
        while time.monotonic() - began < 8.0:  # the pauses would be 1, 2, 4 and now 8 seconds
            with suppress(DatabaseUnavailable):
                database.drop_dead()
                with database.connection(patience=0.2) as conn:
                    conn.execute("select")
        proxy.admit()
        opened = time.monotonic()
        with database.connection(patience=20) as conn:
            conn.execute("select")
        assert time.monotonic() - opened < 4.0
        database.close()
