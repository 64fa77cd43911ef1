"""The tutorial's order, whose server is killed with -9 between every two of its steps."""

from __future__ import annotations

import os
import re
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from conductor_cli import Conductor
from tests.support.command import FOREIGN, Running, command, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from tests.support.clock import Clock

ROOT: Final = Path(__file__).parents[2]
EXAMPLE: Final = ROOT / "examples" / "orders"
TUTORIAL: Final = (ROOT / "docs" / "tutorial.md").read_text()
HAPPY: Final = ["charge", "reserve", "ship", "write"]
REFUNDED: Final = ["charge", "reserve", "release", "refund"]

pytestmark = pytest.mark.timeout(240)


class Shop:
    """A copy of the example, with a database of the test's."""

    def __init__(self, folder: Path, conductor: Conductor, url: str) -> None:
        self.folder = folder
        self.conductor = conductor
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        self.environment = kept | {
            "CONDUCTOR_DATABASE_URL": url,
            "CONDUCTOR_SERVER_PORT": "0",
            "CONDUCTOR_COORDINATOR_HEARTBEAT_INTERVAL": "0.5",
            "CONDUCTOR_COORDINATOR_HEARTBEAT_TIMEOUT": "2",
        }

    @contextmanager
    def server(self) -> Iterator[Running]:
        """A server that is ready."""
        with Running(command("start-server"), self.folder, self.environment) as started:
            started.wait_until_ready()
            yield started

    def order(self, **more: Any) -> UUID:
        payload = {"order": "1001", "amount": "49.90", **more}
        return self.conductor.invoke("fulfil", payload, queue="default")

    def pay(self) -> None:
        self.conductor.emit("payment.settled", {"order": "1001"})

    def cause(self, *trouble: str) -> None:
        for each in trouble:
            (self.folder / each).touch()

    def end(self, trouble: str) -> None:
        (self.folder / trouble).unlink()

    def happened(self) -> list[str]:
        """What did, without its details; what happened a second time says so."""
        log = self.folder / "shop.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [re.sub(r" 1001( again)?.*", r"\1", line) for line in lines]

    def recorded(self, id: UUID) -> list[str]:
        """The names of what is remembered."""
        with self.conductor.database.connection() as conn:
            found = conn.execute(
                "select name from conductor.ledger where execution_id = %s order by seq", [id]
            )
            return [name for (name,) in found]

    def state(self, id: UUID) -> str:
        found = self.conductor.get(id)
        assert found is not None
        return found.state

    def runs(self, id: UUID) -> int:
        found = self.conductor.get(id)
        assert found is not None
        return found.runs

    def until_recorded(self, id: UUID, name: str) -> None:
        eventually(lambda: name in self.recorded(id), what=f"the record of {name!r}")

    def until_waiting(self, id: UUID) -> None:
        eventually(lambda: self.state(id) == "waiting", what="the wait")


@pytest.fixture
def shop(tmp_path: Path, database_url: str) -> Iterator[Shop]:
    folder = tmp_path / "orders"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns(".conductor", "__pycache__"))
    with Conductor.create(database_url) as conductor:
        yield Shop(folder, conductor, database_url)


def kill(server: Running) -> None:
    server.signal(signal.SIGKILL)
    assert server.end() == -signal.SIGKILL


def test_an_order_is_shipped_once_though_its_server_dies_between_all_steps(shop: Shop) -> None:
    shop.cause("charge.slow", "reserve.slow", "ship.slow", "write.slow")
    id = shop.order()
    with shop.server() as server:
        shop.until_recorded(id, "paid")
        kill(server)
    for done, next_one in (("charge", "reserve"), ("reserve", None)):
        shop.end(f"{done}.slow")
        with shop.server() as server:
            shop.until_recorded(id, done)
            assert next_one is None or next_one not in shop.happened()
            kill(server)
    with shop.server() as server:
        shop.until_waiting(id)
        kill(server)
    shop.pay()  # while nobody works
    with shop.server() as server:
        shop.until_recorded(id, "pack")
        slept = shop.runs(id)
        kill(server)
    with shop.server() as server:
        eventually(lambda: shop.runs(id) > slept and shop.state(id) == "running")
        kill(server)
    shop.end("ship.slow")
    with shop.server() as server:
        shop.until_recorded(id, "tell")
        kill(server)
    assert shop.happened() == HAPPY[:3]
    shop.end("write.slow")
    with shop.server():
        assert shop.conductor.wait(id, timeout=60) == "shipped"
    assert shop.happened() == HAPPY


def test_what_dies_before_its_record_runs_again_under_the_same_key(shop: Shop) -> None:
    shop.cause("charge.stuck")
    id = shop.order()
    with shop.server() as server:
        eventually(shop.happened)
        assert shop.recorded(id) == ["paid"]
        kill(server)
    shop.end("charge.stuck")
    with shop.server():
        shop.until_waiting(id)
        shop.pay()
        assert shop.conductor.wait(id, timeout=60) == "shipped"
    assert shop.happened() == ["charge", "charge again", *HAPPY[1:]]


def test_an_order_that_is_not_paid_is_given_back_once(shop: Shop, clock: Clock) -> None:
    shop.cause("refund.slow")
    id = shop.order()
    with shop.server() as server:
        shop.until_waiting(id)
        kill(server)
    clock.advance(3600)  # while nobody works
    with shop.server() as server:
        shop.until_recorded(id, "release")
        kill(server)
    shop.end("refund.slow")
    with shop.server():
        assert shop.conductor.wait(id, timeout=60) == "refunded"
    assert shop.happened() == REFUNDED


def test_a_carrier_that_stays_away_has_the_order_given_back(shop: Shop) -> None:
    shop.cause("ship.down")
    id = shop.order()
    with shop.server():
        shop.until_waiting(id)
        shop.pay()
        assert shop.conductor.wait(id, timeout=60) == "refunded"
    assert shop.happened() == REFUNDED


def test_the_code_in_the_tutorial_is_the_examples() -> None:
    files = "\n".join(file.read_text() for file in EXAMPLE.glob("*.*") if file.is_file())
    blocks = re.findall(r"```(?:python|toml)\n(.*?)```", TUTORIAL, re.DOTALL)
    assert len(blocks) > 4
    assert [block for block in blocks if block not in files] == []
