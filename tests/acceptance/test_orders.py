"""The example of the tutorial, its server killed with -9 between every pair of steps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from conductor_cli import Conductor, Execution, State

EXAMPLE = Path(__file__).parents[2] / "examples" / "orders"

# Beside the example's own module: it dies where it is told to, before what comes next is done.
KILLING = '''
"""Kills its process once before each effect for which there is a file."""
import os, signal
from pathlib import Path
import orders

HERE, really = Path(__file__).parent, orders.do

def do(what, order, key):
    mark = HERE / f"kill {what}"
    if mark.exists():
        mark.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    really(what, order, key)

orders.do = do
orders.PATIENCE = float(os.environ.get("PATIENCE", "3600"))
'''

pytestmark = pytest.mark.timeout(240)


class Server:
    """The example's server, started again whenever it has been killed."""

    def __init__(self, folder: Path, url: str, **environment: str) -> None:
        self.deaths = 0
        self._environment = os.environ | environment | {
            "CONDUCTOR_DATABASE_URL": url,
            "CONDUCTOR_SERVER_PORT": "0",
            "CONDUCTOR_TASKS_MODULES": "killing,orders",
            "CONDUCTOR_COORDINATOR_HEARTBEAT_INTERVAL": "0.5",
            "CONDUCTOR_COORDINATOR_HEARTBEAT_TIMEOUT": "2",
        }  # fmt: skip
        self._folder = folder
        self._ends = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ends.set()
        if self._process is not None:
            self._process.terminate()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._ends.is_set():
            with (self._folder / "server.log").open("ab") as log:
                self._process = subprocess.Popen(
                    (sys.executable, "-m", "conductor_cli", "start-server"),
                    cwd=self._folder, env=self._environment, stdout=log, stderr=log,
                )  # fmt: skip
                code = self._process.wait()
            self.deaths += code == -9
            assert code in (0, -9), (self._folder / "server.log").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "orders"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__", ".conductor"))
    (copy / "killing.py").write_text(KILLING)
    return copy


def effects(folder: Path) -> Counter[str]:
    lines = (folder / "effects.jsonl").read_text().splitlines()
    return Counter(json.loads(line)["what"] for line in lines)


def until(conductor: Conductor, id: UUID, state: State) -> Execution:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = conductor.get(id)
        assert found is not None
        if found.state is state:
            return found
        time.sleep(0.05)
    raise AssertionError(f"it is {found.state}, not {state}: {found}")


def place(conductor: Conductor, folder: Path, order: int, *kills: str) -> UUID:
    for what in kills:
        (folder / f"kill {what}").touch()
    payload: dict[str, Any] = {"order": order, "cents": 1999}
    return conductor.invoke("place_order", payload, queue="default")


def test_an_order_is_charged_reserved_and_shipped_once_whatever_dies(
    folder: Path, database_url: str
) -> None:
    kills = ("charge", "reserve", "ship", "tell sent")
    with Server(folder, database_url) as server, Conductor.create(database_url) as conductor:
        id = place(conductor, folder, 7, *kills)
        until(conductor, id, State.WAITING)
        conductor.emit("payment.settled", {"order": 8, "cents": 1999})
        conductor.emit("payment.settled", {"order": 7, "cents": 1})
        conductor.emit("payment.settled", {"order": 7, "cents": 1999})
        assert conductor.wait(id, timeout=120) == "parcel-7"
        deaths = server.deaths
    assert deaths == len(kills)
    assert effects(folder) == dict.fromkeys(("charge", "reserve", "ship", "tell sent"), 1)


def test_an_order_that_cannot_be_shipped_is_refunded_once_whatever_dies(
    folder: Path, database_url: str
) -> None:
    kills = ("refund", "release", "tell sorry")
    with Server(folder, database_url) as server, Conductor.create(database_url) as conductor:
        id = place(conductor, folder, 10, *kills)
        until(conductor, id, State.WAITING)
        conductor.emit("payment.settled", {"order": 10, "cents": 1999})
        assert conductor.wait(id, timeout=120) == "cancelled: nothing left for order 10"
        deaths = server.deaths
    assert deaths == len(kills)
    assert effects(folder) == dict.fromkeys(
        ("charge", "reserve", "refund", "release", "tell sorry"), 1
    )


def test_an_order_that_is_not_paid_in_time_is_refunded(folder: Path, database_url: str) -> None:
    with (
        Server(folder, database_url, PATIENCE="0.5"),
        Conductor.create(database_url) as conductor,
    ):
        id = place(conductor, folder, 7, "refund")
        told = conductor.wait(id, timeout=120)
    assert told == "cancelled: No event 'payment.settled' that fits came in time."
    assert effects(folder) == dict.fromkeys(
        ("charge", "reserve", "refund", "release", "tell sorry"), 1
    )
