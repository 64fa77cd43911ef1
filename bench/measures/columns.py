"""How a measure describes its tables, so that the report needs to know no measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One figure of a sample: its key there, its heading and its number of decimals.

    The first column of a table is the one that rows are ranked and ratios formed by.
    """

    key: str
    heading: str
    decimals: int = 0


@dataclass(frozen=True)
class Table:
    """One table of the report: the samples of one case, a row per peer and settings."""

    case: str
    title: str
    columns: tuple[Column, ...]
    higher_is_better: bool = True


COST: tuple[Column, ...] = (
    Column("client_us", "client CPU µs", 1),
    Column("server_us", "server CPU µs", 1),
    Column("statements", "statements", 3),
    Column("commits", "commits", 3),
    Column("wal_bytes", "WAL bytes"),
    Column("dead_rows", "dead rows", 2),
)
