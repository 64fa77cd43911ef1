"""The server itself: what it is, how it is set, what holds it up, who stands in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from conductor_cli import pooler
from conductor_cli.diagnosis.finding import duration, error, ok, size, some, warning
from conductor_cli.store import diagnosis as store
from conductor_cli.worker import PUMPS

if TYPE_CHECKING:
    from conductor_cli.config import Config
    from conductor_cli.diagnosis.finding import Finding, Findings, Patient

OLDEST_VERSION: Final = 15
OFFSET_LIMIT: Final = 2.0  # seconds
HELD_LONG: Final = 60.0  # seconds for which a snapshot may be held without a word
HELD_TOO_LONG: Final = 600.0
LOCK_PATIENCE: Final = 2.0  # seconds a session may wait for a lock
WAL_LIMIT: Final = 1 << 30  # bytes an idle slot may keep without a word
POOL_SPARE: Final = 4  # what a server's pool has above its concurrency
FIXED: Final = 2  # heartbeat and listener


def version(patient: Patient) -> Findings:
    """The version of the server, and its encoding."""
    facts = store.server(patient.conn)
    if facts.version_number < OLDEST_VERSION * 10_000:
        yield error(
            "server", f"Postgres {facts.version} is too old.",
            f"Upgrade it to {OLDEST_VERSION} or newer.",
        )  # fmt: skip
    elif facts.encoding != "UTF8":
        yield error(
            "server", f"The database's encoding is {facts.encoding}: text outside it is refused.",
            "Create the database with encoding 'UTF8' (and template0), and move there.",
        )  # fmt: skip
    else:
        yield ok("server", f"Postgres {facts.version}, as role {facts.role}.")


def writable(patient: Patient) -> Findings:
    """A standby can run nothing."""
    facts = store.server(patient.conn)
    if facts.in_recovery:
        yield error(
            "read only", "This is a standby: it replays another server and takes no writes.",
            "Let database.url name the primary; with several hosts in it add "
            "target_session_attrs=read-write.",
        )  # fmt: skip
    else:
        yield ok("read only", "It takes writes.")


def durability(patient: Patient) -> Findings:
    """Settings by which Postgres may forget what it has confirmed."""
    facts = store.server(patient.conn)
    well = True
    for name, is_on in (("fsync", facts.fsync), ("full_page_writes", facts.full_page_writes)):
        if not is_on:
            well = False
            yield warning(
                "durability", f"{name} is off: a crash of the machine can ruin the database.",
                f"Set {name} = on, unless all of this may be lost.",
            )  # fmt: skip
    if facts.synchronous_commit == "off":
        well = False
        yield warning(
            "durability",
            "synchronous_commit is off: a crash of Postgres loses the last moments, so that what "
            "was invoked is gone and what was completed runs again.",
            f"alter role {facts.role} set synchronous_commit = on.",
        )
    if well:
        yield ok("durability", f"synchronous_commit is {facts.synchronous_commit}.")


def clock(patient: Patient) -> Findings:
    """How far this machine's clock is from the database's, half the round trip taken off."""
    before = patient.wall()
    there = store.clock(patient.conn)
    offset = (before + patient.wall()) / 2 - there
    ahead = "ahead of" if offset > 0 else "behind"
    message = f"This machine's clock is {duration(abs(offset))} {ahead} the database's."
    if abs(offset) > OFFSET_LIMIT:
        yield warning(
            "clock", message,
            "Let both keep time by NTP. Conductor goes by the database's clock alone, but tasks "
            "and logs show this one's.",
        )  # fmt: skip
    else:
        yield ok("clock", message)


def connections_needed(config: Config, queues: int, *, behind_pooler: bool = False) -> int:
    """How many connections a server may hold at once.

    In each of its processes two for each queue, one for the heartbeat, one for the listener (none
    behind a pooler), and the pool: concurrency + 4.
    """
    pool = config.worker.concurrency + POOL_SPARE
    return config.worker.processes * (PUMPS * queues + FIXED - behind_pooler + pool)


def connections(patient: Patient) -> Findings:
    """Whether one more server would find the connections it needs."""
    queues = len(patient.tasks.queues) if patient.tasks is not None else 1
    deaf = patient.database.is_behind_pooler
    need = connections_needed(patient.config, queues, behind_pooler=deaf)
    room = store.room(patient.conn)
    where, free = _tightest(room)
    processes = patient.config.worker.processes
    times = f"in each of {processes} processes " if processes > 1 else ""
    needs = (
        f"a server needs up to {need}: {times}{PUMPS} for each of {queues} "
        f"queue{'s' * (queues != 1)}, {FIXED - deaf} for heartbeat{'' if deaf else ' and listener'}"
        f", {patient.config.worker.concurrency} + {POOL_SPARE} for tasks"
    )
    if deaf:
        yield ok("connections", f"At the pooler {needs}. Its pool may be far smaller.")
    elif free < need:
        yield warning(
            "connections", f"{free} are free ({where}); {needs}.",
            "Raise the limit, lower worker.concurrency or worker.processes, or end sessions that "
            "are not needed. A deploy needs room for the old and the new server.",
        )  # fmt: skip
    else:
        yield ok("connections", f"{free} are free ({where}); {needs}.")


def _tightest(room: store.Room) -> tuple[str, int]:
    limits = [
        ("max_connections", room.most, room.used),
        ("the role's connection limit", room.role_limit, room.role_used),
        ("the database's connection limit", room.database_limit, room.database_used),
    ]
    given = [(name, limit, used) for name, limit, used in limits if limit >= 0]
    name, limit, used = min(given, key=lambda each: each[1] - each[2])
    return f"{used} of {limit} in use, by {name}", max(0, limit - used)


def between(patient: Patient) -> Findings:
    """Whether a pooler stands in between, and whether the configuration knows."""
    asked, check = patient.config.database.pooler, "pooler"
    if not pooler.allows_transactions(patient.conn):
        yield error(
            check, "A pooler in statement mode: it allows no transactions, so that little works.",
            "Let it pool by transaction (pool_mode = transaction), or go to Postgres directly.",
        )  # fmt: skip
        return
    is_direct = pooler.is_direct(patient.conn)
    shared = not is_direct and _shares_sessions(patient)
    if asked is False and shared:
        yield error(
            check, "A pooler shares sessions between clients, and database.pooler is false: "
            "settings and prepared statements of others are met, notifications are lost.",
            "Remove database.pooler, or set it to true; or go to Postgres directly.",
        )  # fmt: skip
    elif asked and is_direct:
        yield warning(
            check, "database.pooler is true, and there is none: work is polled for needlessly.",
            "Remove database.pooler.",
        )  # fmt: skip
    elif is_direct:
        yield ok(check, "None in between: notifications wake the workers.")
    elif asked is False:
        yield ok(check, "A pooler that keeps sessions apart, as configured.")
    else:
        yield _polls(patient, shared=shared)


def _polls(patient: Patient, *, shared: bool) -> Finding:
    seen = "in transaction mode (two clients met in one session)"
    unseen = "that may share sessions (none was seen to)"
    message = (
        f"A pooler {seen if shared else unseen}: no notifications; work is found by polling, "
        f"within {patient.config.worker.poll_interval:g} s (worker.poll_interval)."
    )
    advice = "To start work within milliseconds let servers go to Postgres itself."
    if not shared:
        advice += " If it is in session mode, set database.pooler = false."
    if patient.config.database.pooler:
        return ok("pooler", message)
    return warning("pooler", message, f"{advice} To keep it so, set database.pooler = true.")


def _shares_sessions(patient: Patient) -> bool:
    with patient.database.connect("doctor") as other:
        return pooler.shares_sessions(patient.conn, other)


def snapshot(patient: Patient) -> Findings:
    """Transactions open for so long that dead rows pile up behind them."""
    held = [h for h in store.holders(patient.conn) if (h.seconds or 0.0) > HELD_LONG]
    for each in held:
        seconds = each.seconds or 0.0
        who = f"{each.application or 'a session'} (pid {each.pid}, role {each.role})"
        make = error if seconds > HELD_TOO_LONG else warning
        yield make(
            "snapshot",
            f"{who} has had a transaction open for {duration(seconds)}, {each.state or 'active'}: "
            "rows that are done with cannot be removed, and claiming slows down.",
            f"End it: select pg_terminate_backend({each.pid}). Let that program commit sooner, or "
            "set idle_in_transaction_session_timeout for its role.",
        )
    if not held:
        yield ok("snapshot", f"No transaction is older than {duration(HELD_LONG)}.")


def prepared(patient: Patient) -> Findings:
    """Two-phase transactions that nobody ends hold up vacuum, and locks, for ever."""
    held = [p for p in store.prepared(patient.conn) if p.seconds > HELD_LONG]
    for each in held:
        yield error(
            "prepared transactions",
            f"{each.name!r} of {each.role} was prepared {duration(each.seconds)} ago and not ended:"
            " it keeps its locks and every row that is done with.",
            f"commit prepared '{each.name}' or rollback prepared '{each.name}'.",
        )
    if not held:
        yield ok("prepared transactions", "None is forgotten.")


def slots(patient: Patient) -> Findings:
    """Replication slots without a reader."""
    idle = store.idle_slots(patient.conn)
    for each in idle:
        keeps = f"{size(each.bytes)} of WAL" if each.bytes is not None else "no WAL yet"
        rows = ", and rows that are done with" if each.holds_rows else ""
        make = error if (each.bytes or 0) > WAL_LIMIT or each.holds_rows else warning
        yield make(
            "replication slots", f"{each.name!r} has no reader; it keeps {keeps}{rows}.",
            f"Start its reader, or: select pg_drop_replication_slot('{each.name}').",
        )  # fmt: skip
    if not idle:
        yield ok("replication slots", "None without a reader.")


def locks(patient: Patient) -> Findings:
    """Who waits for whom at the schema's tables."""
    waits = store.lock_waits(patient.conn, LOCK_PATIENCE)
    if waits:
        first = waits[0]
        who = some([f"{each.application or 'a session'} (pid {each.pid})" for each in waits])
        yield error(
            "locks", f"{len(waits)} wait for a lock at Conductor's tables, the longest for "
            f"{duration(first.seconds)}: {who}. It is held by {first.blockers}.",
            "Let the holder commit, or end it with pg_terminate_backend(). Who invokes in a "
            "transaction of its own should commit soon.",
        )  # fmt: skip
    else:
        yield ok("locks", "Nobody waits for one.")
