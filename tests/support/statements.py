"""The statements of the package as Postgres sees them: numbered parameters, plans."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

import conductor_cli
from conductor_cli.database import Statement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conductor_cli.database import Connection

PACKAGE: Final = Path(conductor_cli.__file__).parent
PARAMETER: Final = re.compile(r"%\((\w+)\)s")


def all_statements() -> dict[str, Statement[Any]]:
    """Those of all modules, by module and name."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        names = re.findall(r"^(\w+)\b.*= Statement\(", file.read_text(), re.MULTILINE)
        if names:
            parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
            module = importlib.import_module(".".join(parts))
            found |= {f"{'.'.join(parts[1:])}.{name}": getattr(module, name) for name in names}
    return found


def parameters(statement: Statement[Any]) -> list[str]:
    """Their names, in order of first appearance."""
    return list(dict.fromkeys(PARAMETER.findall(statement.sql)))


def numbered(statement: Statement[Any]) -> str:
    """The same with $1, $2, ..."""
    names = parameters(statement)
    return PARAMETER.sub(lambda found: f"${names.index(found[1]) + 1}", statement.sql)


class Plan:
    """How a statement was carried out."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root

    def scans(self, relation: str) -> list[dict[str, Any]]:
        """The nodes that read a table, or a partition of it."""
        return [
            node for node in _walk(self._root)
            if node.get("Relation Name", "").startswith(relation)
            and node["Node Type"] != "ModifyTable"
        ]  # fmt: skip

    def indexes(self, relation: str) -> set[str]:
        """By which it is read; of partitions' indexes the name without the day."""
        used = [
            node.get("Index Name", node["Node Type"])
            for scan in self.scans(relation)
            for node in (scan, *scan.get("Plans", ()))
            if node is scan or node["Node Type"].startswith("Bitmap")
        ]
        return {re.sub(r"\d{8}_", "", name) for name in used if name != "Bitmap Heap Scan"}

    def read(self, relation: str) -> float:
        """How many rows were looked at, the unfit ones included."""
        return sum(
            (n["Actual Rows"] + n.get("Rows Removed by Filter", 0)
             + n.get("Rows Removed by Index Recheck", 0)) * n["Actual Loops"]
            for n in self.scans(relation)
        )  # fmt: skip

    def whole(self, relation: str) -> set[str]:
        """How it is read from end to end, or an index of it is."""
        return {
            node.get("Index Name", node["Node Type"])
            for node in self.scans(relation)
            if node["Node Type"] in ("Seq Scan", "Index Scan", "Index Only Scan")
            and "Index Cond" not in node
        }

    @property
    def buffers(self) -> int:
        return int(self._root["Shared Hit Blocks"] + self._root["Shared Read Blocks"])


def explain(
    conn: Connection, statement: Statement[Any], *, analyze: bool = True, **given: Any
) -> Plan:
    """Prepare and execute it, and say how it went; what is not given is null."""
    conn.execute(f"prepare it as {numbered(statement)}".encode())
    try:
        values = sql.SQL(", ").join(sql.Literal(given.get(n)) for n in parameters(statement))
        call = (
            sql.SQL("execute it ({})").format(values)
            if parameters(statement)
            else sql.SQL("execute it")
        )
        options = sql.SQL("analyze, buffers, " if analyze else "")
        row = conn.execute(sql.SQL("explain ({}format json) {}").format(options, call)).fetchone()
        assert row is not None
        return Plan(row[0][0]["Plan"])
    finally:
        conn.execute("deallocate it")


def _walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _walk(child)
