"""The world outside, played by a file: a bank, a warehouse, a carrier, a letter to the customer.

Each thing that happens is a line of shop.log. Files beside it make trouble on purpose:
ship.slow: it waits before it ships; ship.stuck: it has shipped, but its answer does not come,
until the file is gone; ship.down: it refuses. The same for charge, reserve and the others.
"""

import time
from pathlib import Path

HERE = Path(__file__).parent
LOG = HERE / "shop.log"


class Refused(Exception):
    """The other side said no."""


def charge(key: str, order: str, amount: str) -> str:
    """Ask the bank for the money; returns the number of the charge."""
    _happen("charge", order, key, amount)
    return f"charge-{order}"


def reserve(key: str, order: str) -> None:
    _happen("reserve", order, key)


def ship(key: str, order: str) -> str:
    """Hand the parcel over; returns its number."""
    _happen("ship", order, key)
    return f"parcel-{order}"


def release(key: str, order: str) -> None:
    _happen("release", order, key)


def refund(key: str, order: str, charge: str) -> None:
    _happen("refund", order, key, charge)


def write_to(key: str, order: str, text: str) -> None:
    _happen("write", order, key, text)


def _happen(what: str, order: str, key: str, *more: str) -> None:
    _wait_while(HERE / f"{what}.slow")
    if (HERE / f"{what}.down").exists():
        raise Refused(f"{what} {order}: come back later")
    seen = LOG.exists() and key in LOG.read_text()
    with LOG.open("a") as log:
        print(what, order, *(["again"] if seen else more), f"[{key}]", file=log)
    _wait_while(HERE / f"{what}.stuck")


def _wait_while(file: Path) -> None:
    while file.exists():
        time.sleep(0.05)
