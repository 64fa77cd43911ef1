"""A log that nobody reads, that is too much, or that blocks: beats and results go on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.catalogue import scenario
from tests.faults.cluster import eventually
from tests.faults.server import Server
from tests.faults.stage import Stage

MODULES = ("plain", "noisy")


@contextmanager
def _watched(stage: Stage) -> Iterator[None]:
    """The longest silence of the heartbeat, as the database sees it, while this goes on."""
    over, longest = threading.Event(), [0.0]

    def look() -> None:
        with stage.cluster.connect() as conn:
            while not over.wait(0.05):
                row = conn.execute(
                    "select extract(epoch from max(clock_timestamp() - beat_at))::float8 "
                    "from conductor.orchestrators"
                ).fetchone()
                if row is not None and row[0] is not None:
                    longest[0] = max(longest[0], row[0])

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield
    over.set()
    thread.join(10)
    stage.figure("longest without a beat", longest[0], stage.beat.interval * 1.5)


def _starts(stage: Stage, server: Server) -> None:
    """Its port is in a log that may not be there: by its row in the fleet."""
    pid = server.pid
    eventually(
        lambda: stage.cluster.one("select 1 from conductor.orchestrators where pid = %s", pid),
        40, "a server in the fleet",
    )  # fmt: skip
    stage.wait_until_works()


def _goes_on(stage: Stage, server: Server, seconds: float) -> None:
    with _watched(stage), stage.load("quick", lambda: {"seconds": 0.02}, rate=50):
        time.sleep(seconds)
        stage.figure("work begins after", stage.wait_until_works(), 1.0)
    stage.settle()
    moment = server.terminate()
    code = server.wait(40)
    assert server.ended is not None
    stage.figure("gone after", server.ended - moment, 2.0)
    stage.require(code == 0, f"exit code {code}")
    stage.judge()


@scenario("log-closed")
def log_closed(stage: Stage) -> None:
    """The reader of the server's stderr, a pipe, goes away.

    Heartbeat and results go on; it stops cleanly.
    """
    read_end, write_end = os.pipe()
    server = stage.server(modules=MODULES, stderr=write_end, ready=False)
    os.close(write_end)
    _starts(stage, server)
    os.close(read_end)
    stage.inject()
    stage.client.invoke("chatter", {"lines": 1000})
    _goes_on(stage, server, stage.choose("seconds", 20.0, 4.0))


@scenario("log-stuck")
def log_stuck(stage: Stage) -> None:
    """The reader of the server's stderr, a pipe, stays and reads nothing; a million lines.

    Heartbeat and results go on; lines are lost, not work; it stops cleanly.
    """
    read_end, write_end = os.pipe()
    server = stage.server(modules=MODULES, stderr=write_end, ready=False)
    os.close(write_end)
    _starts(stage, server)
    lines = stage.choose("lines", 1_000_000, 50_000)
    stage.client.invoke_many("chatter", [{"lines": lines // 4}] * 4)
    stage.inject(lines)
    _goes_on(stage, server, stage.choose("seconds", 20.0, 4.0))
    os.close(read_end)


@scenario("log-million")
def log_million(stage: Stage) -> None:
    """A million lines of log by four tasks, to a file.

    Heartbeat and results go on.
    """
    server = stage.server(modules=MODULES)
    lines = stage.choose("lines", 1_000_000, 50_000)
    stage.client.invoke_many("chatter", [{"lines": lines // 4}] * 4)
    stage.inject(lines)
    _goes_on(stage, server, stage.choose("seconds", 20.0, 4.0))
    stage.figure("lines written", str(server.text.count("\n")))


@scenario("log-handler")
def log_handler(stage: Stage) -> None:
    """A logging handler on the root logger that never comes back.

    Whoever logs by it waits; heartbeat and results go on; it stops cleanly.
    """
    server = stage.server(modules=MODULES, env={"FAULTS_BLOCKS": "1"}, ready=False)
    _starts(stage, server)
    stage.inject()
    _goes_on(stage, server, stage.choose("seconds", 20.0, 4.0))
