"""An order, from the charge to the parcel: steps, an event, a sleep, a child, and a way back.

    conductor start-server
    python orders.py place 7            # in another terminal
    python orders.py settle 7           # what the bank would say
    cat effects.jsonl                   # what happened to the world, each line once

Kill the server with -9 whenever you like, and start it again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final
from uuid import UUID

from conductor_cli import Conductor, Context, EventTimedOut, Step, between, task

HERE: Final = Path(__file__).parent
PATIENCE: Final = 3600.0  # seconds in which a payment has to settle
COOLING_OFF: Final = 1.0  # seconds in which a customer may think again


class OutOfStock(Exception):
    """The warehouse has none left."""


def do(what: str, order: int, key: str) -> None:
    """Where the outside world would be: a bank, a warehouse, a mail server. ``key`` is the same
    however often a step is tried, so that a bank could tell a second try from a second charge."""
    with (HERE / "effects.jsonl").open("a") as file:
        file.write(json.dumps({"what": what, "order": order, "key": key}) + "\n")


def charge(order: int, cents: int, key: str) -> str:
    do("charge", order, key)
    return f"charge-{order}-{cents}"


def reserve(order: int, key: str) -> None:
    do("reserve", order, key)


def release(order: int, key: str) -> None:
    do("release", order, key)


def refund(order: int, charged: str, key: str) -> str:
    do("refund", order, key)
    return f"refund of {charged}"


def tell(order: int, text: str, key: str) -> None:
    do(f"tell {text}", order, key)


def pick(order: int) -> None:
    if order % 10 == 0:
        raise OutOfStock(f"nothing left for order {order}")


@task(max_attempts=5, retry=[1, 5, 30], max_crashes=100)
def ship(ctx: Context, order: int) -> str:
    """A task of its own: it could live in another queue, on the warehouse's servers."""
    ctx.step("ship", lambda: do("ship", order, str(ctx.execution_id)))
    return f"parcel-{order}"


@task(max_attempts=10, retry=[1, 5, 30], max_crashes=100)
def place_order(ctx: Context, order: int, cents: int) -> str:
    """Charge, reserve, wait for the money, let it settle, ship; or give the money back."""
    key = str(ctx.execution_id)
    charged = ctx.step(Step("charge", max_attempts=3, retry=[1, 10]), charge, order, cents, key)
    ctx.step("reserve", reserve, order, key)
    try:
        ctx.wait_for_event(
            "paid", "payment.settled", where={"order": order, "cents": between(cents, 10**9)},
            timeout=PATIENCE,
        )  # fmt: skip
        ctx.sleep("cooling off", COOLING_OFF)
        ctx.step("pick", pick, order)
        parcel = ctx.invoke("ship", ship, {"order": order})
    except (EventTimedOut, OutOfStock) as why:
        ctx.step("refund", refund, order, charged, key)
        ctx.step("release", release, order, key)
        ctx.step("tell", tell, order, "sorry", key)
        return f"cancelled: {why}"
    ctx.step("tell", tell, order, "sent", key)
    return parcel


def main(command: str, order: int, cents: int = 1999) -> None:
    with Conductor.from_config(HERE / "conductor.toml") as conductor:
        match command:
            case "place":
                payload = {"order": order, "cents": cents}
                print(conductor.invoke(place_order, payload, dedupe_key=str(order)))
            case "settle":
                event: UUID = conductor.emit("payment.settled", {"order": order, "cents": cents})
                print(event)
            case _:
                sys.exit(f"{command!r} is neither place nor settle")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
