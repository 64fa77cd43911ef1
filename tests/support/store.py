"""Short words for what tests of the store do again and again."""

from __future__ import annotations

import json
import secrets
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, LiteralString
from uuid import UUID, uuid4

from psycopg.rows import namedtuple_row

from conductor_cli.models import Cancelled, Claimed, Completed, ExecutionError, Failed, TaskSpec
from conductor_cli.store import claims, definitions, endings, executions, fleet
from conductor_cli.store.claims import START, Claim, Ended, Ending, Exchange, Place
from conductor_cli.store.executions import Met

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conductor_cli.database import Connection

DAY: Final = 86400.0
DONE: Final = Completed('"done"')
BROKEN: Final = Failed(ExecutionError("ValueError", "no", "Traceback ..."))
STOPPED: Final = Cancelled("enough")


def spec(task: str = "t", queue: str = "q", **more: Any) -> dict[str, Any]:
    """One element of what conductor.enqueue takes, with an id of its own."""
    return {"id": str(uuid4()), "task": task, "queue": queue, **more}


def enqueue(conn: Connection, *specs: dict[str, Any], recheck: bool = False) -> list[Met]:
    return executions.enqueue(conn, json.dumps(specs, default=str), recheck=recheck)


def add(conn: Connection, task: str = "t", queue: str = "q", **more: Any) -> UUID:
    """Create one execution that meets no other."""
    made = spec(task, queue, **more)
    assert enqueue(conn, made) == []
    return UUID(made["id"])


def add_many(conn: Connection, count: int, **more: Any) -> list[UUID]:
    made = [spec(**more) for _ in range(count)]
    assert enqueue(conn, *made) == []
    return [UUID(m["id"]) for m in made]


def exchange(
    conn: Connection,
    ended: Sequence[Ended] = (),
    *,
    owner: UUID | None = None,
    token: int | None = None,
    queue: str = "q",
    tasks: Sequence[str] = ("t",),
    start: Place = START,
    limit: int = 1000,
) -> Exchange:
    claim = Claim(
        owner=owner or uuid4(),
        token=secrets.randbits(62) if token is None else token,
        queue=queue,
        tasks=list(tasks),
        start=start,
        limit=limit,
    )
    return claims.exchange(conn, ended, claim)


def claim(conn: Connection, owner: UUID | None = None, **more: Any) -> list[Claimed]:
    """Claim whatever there is."""
    return exchange(conn, owner=owner, **more).claimed


def claim_one(conn: Connection, owner: UUID | None = None, **more: Any) -> Claimed:
    (claimed,) = claim(conn, owner, **more)
    return claimed


def running(conn: Connection, owner: UUID | None = None, **more: Any) -> Claimed:
    """An execution that is claimed."""
    added = add(conn, **more)
    claimed = claim_one(conn, owner, limit=1)
    assert claimed.id == added
    return claimed


def end(claimed: Claimed, outcome: Ending = DONE, keep: float | None = DAY) -> Ended:
    return Ended(claimed.id, claimed.token, outcome, keep)


def finish(conn: Connection, *ended: Ended) -> Exchange:
    """End these and claim nothing; what the one statement leaves alone by the other one."""
    done = exchange(conn, ended, limit=0)
    verdicts = claims.inspect(conn, done.missing, [e.token for e in ended if e.id in done.missing])
    flagged = [e for e in ended if verdicts.get(e.id) == "flagged"]
    concluded = endings.finish(conn, flagged) if flagged else []
    return Exchange(
        done.claimed,
        [id for id in done.missing if id not in {c.id for c in concluded}],
        [*done.cancelled, *(c.id for c in concluded if c.cancelled)],
    )


def finished(
    conn: Connection, outcome: Ending = DONE, keep: float | None = DAY, **more: Any
) -> UUID:
    """An execution that has ended."""
    claimed = running(conn, **more)
    assert finish(conn, end(claimed, outcome, keep)).missing == []
    return claimed.id


def verdict(conn: Connection, claimed: Claimed) -> str:
    return claims.inspect(conn, [claimed.id], [claimed.token])[claimed.id]


def live(conn: Connection, id: UUID) -> Any:
    """Its row in the hot table, or None."""
    return one(conn, "select * from conductor.live where id = %s", id)


def history(conn: Connection, id: UUID) -> Any:
    """Its row in history, or None."""
    query: LiteralString = """
        select id, token, runs, failures, crashes, state, result, error, payload, metadata,
            event, dedupe_key, group_key, rank, run_at, created_at, started_at, finished_at,
            expires_at = 'infinity' as for_ever,
            case when expires_at < 'infinity'
                then extract(epoch from expires_at - finished_at)::float8 end as kept
        from conductor.history where id = %s
    """
    return one(conn, query, id)


def state(conn: Connection, id: UUID) -> str | None:
    """Its state as everyone outside sees it; None when it does not exist."""
    found = one(conn, "select state from conductor.executions where id = %s", id)
    return None if found is None else str(found.state)


def one(conn: Connection, query: LiteralString, *parameters: Any) -> Any:
    """The only row, or None."""
    with conn.cursor(row_factory=namedtuple_row) as cursor:
        rows = cursor.execute(query, parameters).fetchall()
    assert len(rows) <= 1
    return SimpleNamespace(**rows[0]._asdict()) if rows else None


def scalar(conn: Connection, query: LiteralString, *parameters: Any) -> Any:
    row = conn.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]


def register(conn: Connection, name: str = "t", queue: str = "q", **more: Any) -> None:
    """Register one task; by default it is kept for a day."""
    options: dict[str, Any] = {
        "home": True,
        "priority": 0,
        "max_attempts": 3,
        "max_crashes": 3,
        "retain_completed": DAY,
        "retain_failed": DAY,
        "options": {},
        **more,
    }
    definitions.register_tasks(conn, [TaskSpec(queue=queue, name=name, **options)])


def join(
    conn: Connection, id: UUID | None = None, *, timeout: float = 15.0, queue: str = "q"
) -> UUID:
    """Enter a server into the fleet."""
    server = id or uuid4()
    fleet.join(conn, server, timeout=timeout, version="1", hostname="h", pid=1, queues=[queue])
    return server


def beat(
    conn: Connection,
    id: UUID,
    *,
    term: int | None = None,
    stands: bool = False,
    stopping: bool = False,
    lease: float = 15.0,
) -> fleet.Pulse:
    return fleet.beat(conn, id, stopping=stopping, stands=stands, term=term, lease=lease)
