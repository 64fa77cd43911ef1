"""Every statement of the package: Postgres accepts it, and its columns are its row type."""

from __future__ import annotations

import dataclasses
import re
import typing
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import psycopg
import pytest
from psycopg import pq

from tests.support.statements import all_statements, numbered

if TYPE_CHECKING:
    from conductor_cli.database import Connection, Statement

OIDS: Final[dict[Any, tuple[str, ...]]] = {
    UUID: ("uuid",),
    int: ("int2", "int4", "int8"),
    float: ("float8",),
    str: ("text",),
    bool: ("bool",),
    datetime: ("timestamptz",),
    list[UUID]: ("uuid",),
    list[str]: ("text",),
}


STATEMENTS: Final = all_statements()
every = pytest.mark.parametrize("name", STATEMENTS)


def _columns(row: type[Any]) -> dict[str, Any]:
    """Names and types of a row class, in order."""
    hints = typing.get_type_hints(row, localns={"UUID": UUID, "datetime": datetime})
    if dataclasses.is_dataclass(row):
        return {field.name: hints[field.name] for field in dataclasses.fields(row)}
    return {name: hints[name] for name in row.__struct_fields__}


def _without_none(hint: Any) -> Any:
    inner = [each for each in typing.get_args(hint) if each is not type(None)]
    return inner[0] if type(None) in typing.get_args(hint) else hint


def _describe(conn: Connection, statement: Statement[Any]) -> list[tuple[str, str, bool]]:
    """Name, type and whether it is an array, of each column; parameters have no types.

    That is how psycopg sends None: a statement that works only with typed ones would fail then.
    """
    prepared = conn.pgconn.prepare(b"it", numbered(statement).encode())
    assert prepared.status == pq.ExecStatus.COMMAND_OK, prepared.get_error_message()
    described = conn.pgconn.describe_prepared(b"it")
    columns = []
    for index in range(described.nfields):
        name = described.fname(index)
        oid = described.ftype(index)
        known = psycopg.adapters.types.get(oid)
        assert name is not None
        assert known is not None, f"type {oid} of {name}"
        columns.append((name.decode(), known.name, known.array_oid == oid))
    return columns


def test_there_are_statements_to_look_at() -> None:
    assert {"store.claims.EXCHANGE", "store.fleet.RESCUE", "migrate.APPLIED"} <= set(STATEMENTS)
    assert len(STATEMENTS) > 30


@every
def test_every_statement_is_accepted_and_its_columns_are_its_row(
    conn: Connection, name: str
) -> None:
    statement = STATEMENTS[name]
    described = _describe(conn, statement)
    if statement.row is None:
        expected = {}
    elif statement.row in OIDS:
        expected = {described[0][0]: statement.row}
    else:
        expected = _columns(statement.row)
    assert [column for column, _, _ in described] == list(expected)
    for (column, type_name, is_array), hint in zip(described, expected.values(), strict=True):
        wanted = _without_none(hint)
        assert type_name in OIDS[wanted], f"{column} is {type_name}, not {wanted}"
        assert is_array == (typing.get_origin(wanted) is list), column


@every
def test_every_statement_says_first_why_it_is_safe(name: str) -> None:
    first = STATEMENTS[name].sql.strip().splitlines()[0].strip()
    assert re.match(r"-- [A-Z].{10}", first), first


def test_the_claim_alone_is_the_claim_of_the_exchange() -> None:
    alone, whole = (STATEMENTS[f"store.claims.{name}"].sql for name in ("CLAIM", "EXCHANGE"))
    claim = alone[alone.index("claimed as (") : alone.index("rank, run_at, seq, flags")]
    assert "skip locked" in claim
    assert claim in whole
