"""Ends that do not ask for the token of the claim: planted for the checker."""

from __future__ import annotations

from dataclasses import replace

from conductor_cli.store import claims, endings

CHECK = "l.token = o.token and "
for room, name in ((claims, "EXCHANGE"), (claims, "INSPECT"), (endings, "FINISH")):
    statement = getattr(room, name)
    assert CHECK in statement.sql
    setattr(room, name, replace(statement, sql=statement.sql.replace(CHECK, "")))
