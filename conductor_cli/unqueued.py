"""The ledger of a task that runs without a queue, as ``conductor run`` does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from conductor_cli.errors import StepError
from conductor_cli.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from conductor_cli.attempt import Attempt
    from conductor_cli.client import Conductor
    from conductor_cli.database import Connection
    from conductor_cli.journal import Line
    from conductor_cli.models import Park
    from conductor_cli.store.ledger import New

T = TypeVar("T")


class Unqueued(Ledger):
    """Nothing outlives its task, and there is nobody to wait for."""

    leaves_threads = False

    def __init__(self, attempt: Attempt, conductor: Conductor, limit: int) -> None:
        super().__init__(attempt, conductor)
        self._bytes = limit

    @property
    def limit(self) -> int:
        return self._bytes

    def record(self, *new: New) -> datetime | None:
        return new[0].until or datetime.now(UTC) + timedelta(seconds=new[0].seconds or 0)

    def suspend(self, name: str, _park: Park, _until: datetime | None) -> NoReturn:
        raise _needs_queue(f"{name!r} waits for others")

    def sleep(self, line: Line, name: str, until: datetime | float) -> None:
        self.ask(line, name, "z")
        left = (until - datetime.now(UTC)).total_seconds() if isinstance(until, datetime) else until
        if left > 0 and self._attempt.signal.wait(left):
            self._attempt.signal.raise_if_aborted()

    def flush(self) -> None:
        """Nobody looks at the progress."""

    def transact(self, _new: Callable[[Connection], New]) -> None:
        raise _needs_queue("It writes in a transaction of the runner's")

    def lend(self) -> Any:
        raise _needs_queue("It writes in a transaction of the runner's")

    def work(self, _work: Callable[[Connection], T]) -> T:
        raise _needs_queue("It asks for what only a server can do")


def _needs_queue(what: str) -> StepError:
    return StepError(f"{what}: that needs a queue. Use `conductor invoke --wait` with a server.")
