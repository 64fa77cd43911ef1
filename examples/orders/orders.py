"""An order, from the charge to the parcel, as one function that outlives its server."""

from decimal import Decimal

import shop

from conductor_cli import Context, EventTimedOut, Step, task

SHIP = Step("ship", max_attempts=3, retry=[1, 2])  # seconds before the second and third try


@task(max_crashes=10)
def fulfil(ctx: Context, order: str, amount: Decimal, pay_within: float = 3600) -> str:
    """Charge, reserve, wait for the money, ship; give everything back if that cannot be."""
    paid = ctx.subscribe("paid", "payment.settled", where={"order": order})
    charge = ctx.step("charge", shop.charge, key(ctx, "charge"), order, str(amount))
    ctx.step("reserve", shop.reserve, key(ctx, "reserve"), order)
    try:
        paid.wait(timeout=pay_within)
    except EventTimedOut:
        return give_back(ctx, order, charge)
    ctx.sleep("pack", 3)
    try:
        parcel = ctx.step(SHIP, shop.ship, key(ctx, "ship"), order)
    except shop.Refused:
        return give_back(ctx, order, charge)
    ctx.invoke("tell", write, {"order": order, "text": f"{parcel} is on its way"})
    return "shipped"


def give_back(ctx: Context, order: str, charge: str) -> str:
    """Undo what has been done, in the opposite order."""
    ctx.step("release", shop.release, key(ctx, "release"), order)
    ctx.step("refund", shop.refund, key(ctx, "refund"), order, charge)
    return "refunded"


def key(ctx: Context, step: str) -> str:
    """What the other side may know this step by: the same in every attempt, and nowhere else."""
    return f"{ctx.execution_id}:{step}"


@task
def write(ctx: Context, order: str, text: str) -> None:
    """Tell the customer."""
    shop.write_to(key(ctx, "write"), order, text)
