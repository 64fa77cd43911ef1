"""What a network does between daemon and Postgres, and Postgres' own transient errors."""

from __future__ import annotations

import time

from tests.faults.catalogue import scenario
from tests.faults.cluster import eventually
from tests.faults.proxy import Proxy
from tests.faults.scenarios.leaders import judge_ticks
from tests.faults.server import Server
from tests.faults.stage import RESUME, Stage

NOTICED = 15.0  # seconds within which a silent network is noticed


def _behind(stage: Stage, **settings: object) -> tuple[Proxy, Server]:
    """A server that reaches Postgres by a proxy; the client goes straight."""
    proxy = stage.proxy()
    return proxy, stage.server(url=stage.cluster.url_at(proxy.port), **settings)


def _faulty(stage: Stage, mode: str, times: int, *, names: str = "conductor worker") -> None:
    """The same fault again and again, with work going on; also for a client by the same way."""
    proxy, server = _behind(stage, concurrency=20)
    far = stage.client_at(stage.cluster.url_at(proxy.port))
    slowest = 0.0
    payload = {"seconds": 0.02}
    with (
        stage.outage(),
        stage.load("quick", lambda: payload, rate=30),
        stage.load("quick", lambda: payload, rate=10, client=far),
    ):
        for _ in range(times):
            for each in (names, "conductor heartbeat", "conductor pool", "conductor listener", ""):
                before = proxy.injected
                proxy.set(mode, names=each, times=1)
                until = time.monotonic() + 2.5
                while proxy.injected == before and time.monotonic() < until:
                    time.sleep(0.01)
                slowest = max(slowest, stage.wait_until_works())
        proxy.set("pass")
    stage.inject(proxy.injected)
    stage.figure("resumed after at most", slowest, RESUME)
    stage.figure("reconciled", str(server.total("executions.reconciled")))
    eventually(server.is_ready, RESUME, "readiness")
    stage.judge()


@scenario("reset")
def reset(stage: Stage) -> None:
    """Connections of each kind are reset by the network when a request is sent.

    Resumes within 10 s; nothing lost, one result each.
    """
    _faulty(stage, "reset", stage.choose("rounds", 5, 1))


@scenario("reset-mid-message")
def reset_mid_message(stage: Stage) -> None:
    """Connections of each kind are reset in the middle of a reply.

    No half-read connection is used again; nothing lost, one result each.
    """
    _faulty(stage, "reset-mid-message", stage.choose("rounds", 5, 1))


@scenario("half-close")
def half_close(stage: Stage) -> None:
    """Connections end in one direction in the middle of a reply, and stay open in the other.

    As above.
    """
    _faulty(stage, "half-close", stage.choose("rounds", 5, 1))


@scenario("swallow")
def swallow(stage: Stage) -> None:
    """The reply to a statement is lost after its commit, of each kind of connection: claims,
    results, beats, and a client's invocations.

    Idempotent: nothing lost, one result each, what was claimed unknown to the claimer runs again.
    """
    _faulty(stage, "swallow", stage.choose("rounds", 8, 2))


@scenario("slow-network")
def slow_network(stage: Stage) -> None:
    """Each reply takes 100 ms longer.

    Everything works; no server is declared dead, nothing runs twice.
    """
    proxy, server = _behind(stage)
    proxy.set("delay")
    stage.inject()
    with stage.load("quick", lambda: {"seconds": 0.02}, rate=40):
        time.sleep(stage.choose("seconds", 30.0, 6.0))
    count = stage.judge()
    stage.require(count.runs == count.executions, "something ran twice")
    stage.require(not server.told("server.declared_dead"), "declared dead")


@scenario("refuse")
def refuse(stage: Stage) -> None:
    """The port is closed for some seconds, every connection reset.

    Resumes within 10 s of its opening.
    """
    proxy, server = _behind(stage)
    with stage.load("quick", lambda: {"seconds": 0.02}, rate=30), stage.outage():
        for _ in range(stage.choose("times", 3, 1)):
            proxy.refuse()
            stage.inject()
            time.sleep(stage.choose("seconds", 10.0, 5.0))
            proxy.admit()
            stage.figure("resumed after", stage.wait_until_works(), RESUME)
    eventually(server.is_ready, RESUME, "readiness")
    stage.judge()


@scenario("silent")
def silent(stage: Stage) -> None:
    """Every connection there is goes silent for ever while TCP stays alive; new ones pass.

    Noticed within 15 s, work resumes within 10 s more.
    """
    proxy, server = _behind(stage)
    ids = stage.client.invoke_many("until", [{"name": "go"}] * 3)
    stage.wait_until_started(ids)
    with stage.outage():
        moment = time.monotonic()
        proxy.set("stall")
        stage.inject()
        stage.release("go")
        lost = "database.lost"
        try:
            eventually(lambda: server.told(lost), NOTICED + 5, "noticing the silence")
            stage.figure("noticed after", time.monotonic() - moment, NOTICED)
        except AssertionError as error:
            stage.line.broken.append(str(error))
        proxy.pass_new()
        stage.figure("works after", stage.wait_until_works(after=moment), NOTICED + RESUME)
    proxy.drop_all()
    stage.judge()


@scenario("silent-while")
def silent_for_a_while(stage: Stage) -> None:
    """Nothing is forwarded for 20 s: connections neither end nor can be made; then all is well.

    Not ready while it lasts; resumes within 10 s of its end.
    """
    seconds = stage.choose("seconds", 20.0, 10.0)
    proxy, server = _behind(stage)
    with stage.load("quick", lambda: {"seconds": 0.02}, rate=20), stage.outage():
        time.sleep(0.5)
        proxy.set("stall")
        stage.inject()
        moment = time.monotonic()
        try:
            eventually(lambda: server.get("/readyz") == 503, NOTICED + 5, "unreadiness")
            stage.figure("unready after", time.monotonic() - moment, NOTICED)
        except AssertionError as error:
            stage.line.broken.append(str(error))
        time.sleep(max(0.0, moment + seconds - time.monotonic()))
        proxy.set("pass")
        stage.figure("resumed after", stage.wait_until_works(), RESUME)
    stage.judge()


RAISING = """
create function public.misfortune() returns trigger language plpgsql as $$
begin
    if random() < {share} then
        case floor(random() * 4)::int
            when 0 then raise exception 'planted' using errcode = '40001';
            when 1 then raise exception 'planted' using errcode = '40P01';
            when 2 then raise exception 'planted' using errcode = '57014';
            else raise exception 'planted' using errcode = '55P03';
        end case;
    end if;
    return null;
end $$;
create sequence public.misfortunes;
"""
TABLES = ("live", "history", "orchestrators", "leadership", "schedules", "tasks")


@scenario("transient")
def transient(stage: Stage) -> None:
    """One statement in ten that writes to any table fails: 40001, 40P01, 55P03 or 57014.

    Retried by whoever sent it, batches too: nothing lost, one result each, no failure charged,
    no tick lost or doubled.
    """
    share = 0.1
    server = stage.server(modules=("plain", "ticking"), concurrency=20)
    with stage.cluster.connect() as conn:
        conn.execute(RAISING.format(share=share).encode())
        for table in TABLES:
            conn.execute(
                f"create trigger misfortune after insert or update or delete on conductor.{table} "
                "for each statement execute function public.misfortune()".encode()
            )
    with stage.outage(), stage.load("quick", lambda: {"seconds": 0.02}, rate=60):
        time.sleep(stage.choose("seconds", 60.0, 10.0))
    told = len(server.told("database.lost"))
    stage.inject(told)
    stage.require(told > 0, "nothing was injected")
    for table in TABLES:
        stage.cluster.run(f"drop trigger misfortune on conductor.{table}")  # type: ignore[arg-type]
    count = judge_ticks(stage)
    stage.require(count.ticks > 5, f"only {count.ticks} ticks")
    rows = stage.evidence().rows
    stage.require(all(row.failures == 0 for row in rows), "a failure was charged")
