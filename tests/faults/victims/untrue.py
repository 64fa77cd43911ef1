"""A finishing statement that does not ask for the claim's token: planted for the checker."""

from __future__ import annotations

from dataclasses import replace

from conductor_cli.store import claims

CHECK = "l.id = o.id and l.token = o.token"
assert CHECK in claims.EXCHANGE.sql
claims.EXCHANGE = replace(claims.EXCHANGE, sql=claims.EXCHANGE.sql.replace(CHECK, "l.id = o.id", 1))
