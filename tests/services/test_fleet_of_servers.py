"""Several servers on one database: one leads, the dead are rescued, ticks are unique."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from conductor_cli import Conductor, Config, Context, Orchestrator, State, cron, task
from conductor_cli.sections import Coordinator


@task(triggers=[cron("* * * * * *", name="each_second")])
def second(ctx: Context) -> str:
    assert ctx.event is not None
    assert ctx.event.scheduled_for is not None
    return ctx.event.scheduled_for.isoformat()


def ticks(conductor: Conductor) -> list[str]:
    return [e.result for e in conductor.list(task=second, state="completed", limit=1000)]


def leaders(*servers: Orchestrator) -> list[Orchestrator]:
    return [s for s in servers if s.info.is_leader]


def test_one_of_three_servers_leads_and_each_tick_runs_once(
    conductor: Conductor, start: Any, eventually: Any
) -> None:
    servers = [start(second) for _ in range(3)]
    eventually(lambda: len(leaders(*servers)) == 1)
    eventually(lambda: len(ticks(conductor)) >= 4, timeout=20)
    assert len(leaders(*servers)) == 1
    counted = Counter(ticks(conductor))
    assert set(counted.values()) == {1}


def test_a_clean_stop_hands_the_leadership_over_within_a_second(
    start: Any, eventually: Any
) -> None:
    servers = [start(second) for _ in range(2)]
    (first,) = eventually(lambda: leaders(*servers))
    (other,) = [s for s in servers if s is not first]
    began = time.monotonic()
    first.stop()
    eventually(lambda: other.info.is_leader)
    assert time.monotonic() - began < 2.0


def test_who_leads_by_a_short_lease_leads_from_beat_to_beat(
    start: Any, heard: Any, eventually: Any
) -> None:
    """The configuration allows a lease of twice the time between two beats."""
    short = Coordinator(heartbeat_interval=1.0, heartbeat_timeout=2.0)
    server = start(second, config=Config(coordinator=short))
    eventually(lambda: server.info.is_leader)
    time.sleep(4.0)
    assert heard.count("leadership.gained") == 1


def test_no_tick_is_lost_or_doubled_when_leaders_come_and_go(
    conductor: Conductor, start: Any, eventually: Any
) -> None:
    servers = [start(second) for _ in range(3)]
    for _ in range(2):
        (leader,) = eventually(lambda: leaders(*servers))
        before = len(ticks(conductor))
        eventually(lambda before=before: len(ticks(conductor)) > before + 1)
        servers.remove(leader)
        leader.stop()
    last = len(ticks(conductor))
    eventually(lambda: len(ticks(conductor)) > last + 2)
    moments = sorted(ticks(conductor))
    assert len(set(moments)) == len(moments)
    whole = [round(time.mktime(time.strptime(m[:19], "%Y-%m-%dT%H:%M:%S"))) for m in moments]
    assert whole == list(range(whole[0], whole[0] + len(whole)))


def test_a_schedule_whose_tick_nobody_saw_keeps_its_place_over_a_restart(
    conductor: Conductor, make: Any, eventually: Any
) -> None:
    server = make(second)
    server.start(signals=False)
    eventually(lambda: len(ticks(conductor)) >= 1)
    server.stop()
    time.sleep(2.5)
    server.start(signals=False)
    before = max(ticks(conductor))
    eventually(lambda: max(ticks(conductor)) > before and len(ticks(conductor)) >= 4)
    moments = sorted(ticks(conductor))
    whole = [round(time.mktime(time.strptime(m[:19], "%Y-%m-%dT%H:%M:%S"))) for m in moments]
    assert whole == list(range(whole[0], whole[0] + len(whole)))


SERVER = """
    import sys
    from conductor_cli import Conductor, Orchestrator
    from conductor_cli.config import Config
    from conductor_cli.sections import Coordinator
    from tests.services.test_fleet_of_servers import hold, killer

    config = Config(coordinator=Coordinator(heartbeat_interval=0.3, heartbeat_timeout=1.2))
    server = Orchestrator.create(
        conductor=Conductor.create(sys.argv[1]), tasks=[hold, killer], config=config
    )
    server.start()
    print("ready", flush=True)
    server.stopped.result()
"""


@task(max_attempts=1)
def hold(ctx: Context) -> int:
    if ctx.runs == 1:
        time.sleep(60)
    return ctx.runs


@task(max_crashes=1)
def killer() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Elsewhere:
    """A server in another process, to be killed."""

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SERVER), url],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == "ready"

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)


@pytest.fixture
def elsewhere(database_url: str) -> Iterator[Any]:
    made: list[Elsewhere] = []

    def begin() -> Elsewhere:
        made.append(Elsewhere(database_url))
        return made[-1]

    yield begin
    for each in made:
        each.close()


def test_what_a_killed_server_ran_runs_again_elsewhere_and_is_no_failure(
    conductor: Conductor, elsewhere: Any, start: Any, eventually: Any
) -> None:
    conductor.ensure_installed()
    victim = elsewhere()
    ids = [conductor.invoke(hold) for _ in range(3)]
    eventually(lambda: all(e and e.state == "running" for e in map(conductor.get, ids)))
    start(hold)
    victim.kill()
    assert [conductor.wait(id, timeout=20) for id in ids] == [2, 2, 2]
    ended = [e for e in map(conductor.get, ids) if e]
    assert [(e.failures, e.crashes) for e in ended] == [(0, 1)] * 3


def test_what_takes_its_process_down_too_often_fails_as_crashed(
    conductor: Conductor, elsewhere: Any, start: Any, eventually: Any
) -> None:
    victim = elsewhere()
    id = conductor.invoke(killer)
    victim.process.wait(20)
    elsewhere().process.wait(20)
    start(hold)
    ended = eventually(lambda: (e := conductor.get(id)) and e.state.has_ended and e)
    assert (ended.state, ended.crashes, ended.error.type) == (State.FAILED, 2, "Crashed")


def test_a_stalled_server_is_rescued_and_its_late_result_refused(
    conductor: Conductor, elsewhere: Any, start: Any, eventually: Any
) -> None:
    victim = elsewhere()
    id = conductor.invoke(hold)
    eventually(lambda: (e := conductor.get(id)) and e.state == "running")
    start(hold)
    victim.kill(signal.SIGSTOP)
    assert conductor.wait(id, timeout=20) == 2
    victim.kill(signal.SIGCONT)
    eventually(lambda: len(_servers(conductor)) == 2, what="the stalled one registering anew")
    ended = conductor.get(id)
    assert ended is not None
    assert (ended.result, ended.runs) == (2, 2)


def _servers(conductor: Conductor) -> list[Any]:
    with conductor.database.connection() as conn:
        return conn.execute("select id from conductor.orchestrators").fetchall()


def _kill_backends(url: str, like: str = "conductor %") -> int:
    with psycopg.connect(url, autocommit=True, application_name="test") as conn:
        rows = conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid() "
            "and application_name like %s",
            [like],
        ).fetchall()
        return len(rows)


@task
def quick_one(n: int) -> int:
    return n


@pytest.mark.parametrize("which", ["%", "%pump%", "%listener%", "%heartbeat%", "%pool%"])
def test_work_goes_on_after_connections_are_killed(
    conductor: Conductor, database_url: str, start: Any, which: str
) -> None:
    server = start(quick_one, second)
    assert conductor.wait(conductor.invoke(quick_one, {"n": 0}), timeout=10) == 0
    for round_ in range(3):
        _kill_backends(database_url, which)
        id = conductor.invoke(quick_one, {"n": round_})
        assert conductor.wait(id, timeout=15) == round_
    assert not server.stopped.done()


def test_nothing_is_lost_or_run_twice_while_connections_are_killed_under_load(
    conductor: Conductor, database_url: str, start: Any, heard: Any, eventually: Any
) -> None:
    ran: Counter[int] = Counter()

    @task
    def count(n: int) -> None:
        ran[n] += 1

    start(count)
    ids = conductor.invoke_many(count, [{"n": n} for n in range(5000)])
    for _ in range(5):
        _kill_backends(database_url, "%pump%")
        time.sleep(0.1)
    for id in (ids[0], ids[-1]):
        conductor.wait(id, timeout=30)
    eventually(lambda: len(ran) == 5000, timeout=30)
    eventually(lambda: _live(conductor) == 0, timeout=30, what="everything being recorded")
    assert _ended(conductor) == {"completed": 5000}


def _live(conductor: Conductor) -> int:
    return _count(conductor, "select count(*) from conductor.live")[0]


def _ended(conductor: Conductor) -> dict[str, int]:
    with conductor.database.connection() as conn:
        return dict(
            conn.execute("select state, count(*) from conductor.executions group by 1").fetchall()
        )


def _count(conductor: Conductor, query: str) -> Any:
    with conductor.database.connection() as conn:
        return conn.execute(query).fetchone()


def test_a_claim_whose_reply_was_lost_is_given_back(
    conductor: Conductor, start: Any, eventually: Any, heard: Any
) -> None:
    server = start(quick_one)
    # As the database sees it after a lost reply: claimed by this server, with a token that it
    # never got to know; and as the worker sees it: an exchange that failed.
    id = conductor.invoke("quick_one", {"n": 7}, queue="default", delay=3600)
    with conductor.database.transaction() as conn:
        conn.execute(
            "update conductor.live set state = 'x', owner = %s, token = 42, runs = 1 where id = %s",
            [server.info.id, id],
        )
    _kill_backends(conductor.database.url, "%pump%")
    conductor.invoke(quick_one, {"n": 1})
    assert conductor.wait(id, timeout=15) == 7
    ended = conductor.get(id)
    assert ended is not None
    assert (ended.runs, ended.failures, ended.crashes) == (1, 0, 0)
    assert heard.count("executions.reconciled") == 1


def test_a_server_notices_work_by_polling_when_nobody_notifies(
    conductor: Conductor, start: Any, database_url: str
) -> None:
    start(quick_one)
    with psycopg.connect(database_url) as conn:
        conn.execute(
            "insert into conductor.live (id, run_at, created_at, rank, state, queue, task, payload)"
            " values ('00000000-0000-7000-8000-000000000001', now(), now(), 0, 'r', 'default',"
            " 'quick_one', '{\"n\": 5}')"
        )
    from uuid import UUID

    assert conductor.wait(UUID("00000000-0000-7000-8000-000000000001"), timeout=15) == 5


def test_two_servers_share_the_work_and_run_each_once(
    conductor: Conductor, start: Any, eventually: Any
) -> None:
    ran: Counter[int] = Counter()
    lock = threading.Lock()

    @task
    def share(n: int) -> None:
        with lock:
            ran[n] += 1
        time.sleep(0.001)

    start(share)
    start(share)
    conductor.invoke_many(share, [{"n": n} for n in range(3000)])
    eventually(lambda: _live(conductor) == 0 and len(ran) == 3000, timeout=40)
    assert set(ran.values()) == {1}
