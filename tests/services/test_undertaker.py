"""What servers ran whose processes are known to have ended is given back at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from conductor_cli import Conductor, errors
from conductor_cli.maintenance import Undertaker
from conductor_cli.service import Deadline
from conductor_cli.store import fleet

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def deaths() -> list[BaseException]:
    return []


@pytest.fixture
def undertaker(conductor: Conductor, deaths: list[BaseException]) -> Iterator[Undertaker]:
    made = Undertaker(conductor.database, on_death=lambda _, error: deaths.append(error))
    made.start()
    yield made
    made.stop()
    assert made.join(Deadline(10))
    assert deaths == []


def fallen(conductor: Conductor) -> UUID:
    """A server of the fleet."""
    id = uuid4()
    with conductor.database.transaction() as conn:
        fleet.join(conn, id, timeout=600, version="1", hostname="h", pid=1, queues=["default"])
    return id


def claimed_by(conductor: Conductor, server: UUID) -> UUID:
    """An execution as one that this server runs."""
    id = conductor.invoke("anything", queue="default", delay=3600)
    assert id is not None
    with conductor.database.transaction() as conn:
        conn.execute(
            "update conductor.live set state = 'x', owner = %s, token = 42, runs = 1 where id = %s",
            [server, id],
        )
    return id


def state(conductor: Conductor, id: UUID) -> Any:
    found = conductor.get(id)
    assert found is not None
    return found.state


def test_what_the_fallen_ran_is_given_back_and_told(
    conductor: Conductor, undertaker: Undertaker, heard: Any
) -> None:
    server = fallen(conductor)
    id = claimed_by(conductor, server)
    undertaker.bury(server)
    assert undertaker.settle(Deadline(10))
    assert state(conductor, id) == "pending"
    assert heard.count("executions.rescued") == 1


def test_what_a_last_statement_claims_after_the_burial_is_given_back_too(
    conductor: Conductor, undertaker: Undertaker, eventually: Any
) -> None:
    server = fallen(conductor)
    undertaker.bury(server)
    assert undertaker.settle(Deadline(10))
    id = claimed_by(conductor, server)
    eventually(lambda: state(conductor, id) == "pending")


def test_a_burial_is_tried_again_until_the_database_answers(
    conductor: Conductor, undertaker: Undertaker, monkeypatch: pytest.MonkeyPatch, heard: Any
) -> None:
    connect, refusals = conductor.database.connect, iter([True, True])

    def unreliable(name: str, **bounds: Any) -> Any:
        if name == "undertaker" and next(refusals, False):
            raise errors.DatabaseUnavailable("not now")
        return connect(name, **bounds)

    monkeypatch.setattr(conductor.database, "connect", unreliable)
    servers = [fallen(conductor), fallen(conductor)]
    ids = [claimed_by(conductor, server) for server in servers]
    for server in servers:
        undertaker.bury(server)
    assert undertaker.settle(Deadline(20))
    assert {state(conductor, id) for id in ids} == {"pending"}
    assert heard.count("database.lost") == 2


def test_a_burial_that_cannot_be_is_not_waited_for(
    conductor: Conductor, undertaker: Undertaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_name: str, **_bounds: Any) -> Any:
        raise errors.DatabaseUnavailable("not now")

    with monkeypatch.context() as patched:
        patched.setattr(conductor.database, "connect", refuse)
        undertaker.bury(uuid4())
        assert not undertaker.settle(Deadline(0.2))
    assert undertaker.settle(Deadline(20))
