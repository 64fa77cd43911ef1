"""Who holds locks on Conductor's tables. Reads only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from conductor_cli.database import Statement

if TYPE_CHECKING:
    from conductor_cli.database import Connection


class Holder(msgspec.Struct, frozen=True):
    """A transaction of somebody else that holds locks; ``seconds``: since it began."""

    pid: int
    name: str
    seconds: float

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name or 'without a name'}, for {self.seconds:.0f} s)"


OLDEST: Final = Statement(
    row=Holder,
    sql="""
    -- Reads only. Transactions of less than a second hold nobody up for long.
    select a.pid, a.application_name as name,
        extract(epoch from clock_timestamp() - a.xact_start)::float8 as seconds
    from pg_stat_activity a
    where a.pid <> pg_backend_pid() and a.xact_start < clock_timestamp() - interval '1 second'
      and exists (
        select from pg_locks l join pg_class c on c.oid = l.relation
        where l.pid = a.pid and l.granted and l.mode <> 'AccessShareLock'
          and l.database = (select oid from pg_database where datname = current_database())
          and c.relnamespace = to_regnamespace('conductor'))
    order by a.xact_start
    limit 3
    """,
)


def oldest(conn: Connection) -> list[Holder]:
    """The transactions that have held locks for longest, three at most."""
    return OLDEST.all(conn)
