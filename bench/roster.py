"""The roster of peers. To add one, write its adapter file, then name it here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench.peers import (
    bare,
    chancy,
    conductor,
    dbos,
    graphile_worker,
    oban,
    pg_boss,
    pgqueuer,
    procrastinate,
)

if TYPE_CHECKING:
    from bench.peer import Peer

PEERS: Final[dict[str, Peer]] = {
    module.PEER.name: module.PEER
    for module in (
        conductor,
        pgqueuer,
        procrastinate,
        graphile_worker,
        pg_boss,
        chancy,
        oban,
        dbos,
        bare,
    )
}
