"""Clients that send many dedupe keys at once, each in an order of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING

from conductor_cli import Conductor, task

if TYPE_CHECKING:
    from uuid import UUID

KEYS = 1500  # more than travel together


@task
def greet(name: str) -> str:
    return f"Hello, {name}!"


def test_clients_that_send_the_same_keys_in_opposite_order_all_succeed(
    conductor: Conductor,
) -> None:
    barrier = Barrier(4)

    def send(which: int) -> list[list[UUID]]:
        ids = []
        for n in range(3):
            keys = [f"{n}-{key}" for key in range(KEYS)]
            keys = keys[::-1] if which % 2 else keys
            barrier.wait(60)
            given = [greet.bind(name=key).options(dedupe_key=key) for key in keys]
            got = conductor.invoke_many(greet, given)
            ids.append(got[::-1] if which % 2 else got)
        return ids

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(send, range(4))
    assert all(each == first for each in others)  # each in its caller's order
    with conductor.database.connection() as conn:
        for ids in first:
            query = "select payload ->> 'name' from conductor.live where id = %s"
            row = conn.execute(query, [ids[7]]).fetchone()
            assert row is not None
            assert row[0].endswith("-7")
