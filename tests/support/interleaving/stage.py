"""Who acts next, and what time it is: fibers that take turns, chosen by a seed.

A fiber is a thread that runs only while the stage waits for it, so that the package's services
can be stopped in the midst of a call and there is never more than one thing happening.
"""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

FOREVER: Final = 1e9


class Killed(BaseException):
    """Ends a fiber where it stands, like ``kill -9``."""


class Fiber:
    """One line of action, of a server or a client (``group``)."""

    def __init__(self, stage: Stage, name: str, group: str, body: Callable[[], None]) -> None:
        self.name, self.group = name, group
        self.until = 0.0  # a moment of the stage
        self.unless: Callable[[], bool] | None = None  # what ends the wait earlier
        self.frozen_until = 0.0
        self.has_ended = False
        self.error: BaseException | None = None
        self._stage, self._body = stage, body
        self._doomed = False
        self._go = threading.Lock()
        self._go.acquire()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    @property
    def is_ready(self) -> bool:
        now = self._stage.now
        if now < self.frozen_until:
            return False
        return now >= self.until or (self.unless is not None and self.unless())

    @property
    def due(self) -> float:
        """When it will be ready, if nothing happens before."""
        return max(self.until, self.frozen_until)

    def run(self) -> None:
        """Let it act until it pauses; called by the stage."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._stage.back.acquire()

    def kill(self) -> None:
        if not self.has_ended and self._thread.ident is not None:
            self._doomed = True
            self.run()
        self.has_ended = True

    def pause(self) -> None:
        """Let others act; called by the fiber itself."""
        if self._doomed:
            raise Killed
        self._stage.back.release()
        self._go.acquire()
        if self._doomed:
            raise Killed

    def _main(self) -> None:
        try:
            self._body()
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.has_ended = True
            self._stage.back.release()


class Stage:
    """The fibers of one seed. ``now``: seconds, for the database and every process alike."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 1000.0
        self.is_calm = False  # no more faults, and nothing takes long
        self.steps = 0
        self.fibers: list[Fiber] = []
        self.current: Fiber | None = None
        self.back = threading.Lock()
        self.back.acquire()
        self._notes: list[tuple[float, str, str, object]] = []

    def spawn(self, name: str, group: str, body: Callable[[], None]) -> Fiber:
        fiber = Fiber(self, name, group, body)
        self.fibers.append(fiber)
        return fiber

    def wait(self, seconds: float = 0.0, unless: Callable[[], bool] | None = None) -> None:
        """Pause the current fiber for so long, or until ``unless`` says yes."""
        assert self.current is not None
        self.current.until, self.current.unless = self.now + seconds, unless
        self.current.pause()

    def step(self) -> None:
        """Let one of those that are ready act; when none is, time passes."""
        ready = [fiber for fiber in self.fibers if fiber.is_ready]
        if not ready:
            self.now = min(fiber.due for fiber in self.fibers)
            return
        self.steps += 1
        fiber = ready[0] if len(ready) == 1 else self.chance.choice(ready)
        fiber.until, fiber.unless = self.now, None
        self.current = fiber
        fiber.run()
        self.current = None
        if fiber.has_ended:
            self.fibers.remove(fiber)
            if fiber.error is not None:
                raise fiber.error

    def kill(self, group: str | None = None) -> None:
        """End all fibers of a group (None: all) where they stand."""
        doomed = [f for f in self.fibers if group in (None, f.group)]
        self.fibers = [f for f in self.fibers if f not in doomed]
        for fiber in doomed:
            self.current = fiber
            fiber.kill()
        self.current = None

    def freeze(self, group: str, seconds: float) -> None:
        """Let nothing of a group happen for so long, as SIGSTOP does."""
        for fiber in self.fibers:
            if fiber.group == group:
                fiber.frozen_until = self.now + seconds

    def thaw(self) -> None:
        for fiber in self.fibers:
            fiber.frozen_until = 0.0

    def note(self, what: str, more: object = "") -> None:
        """Take down what happened, for whoever reads a failure."""
        who = self.current.name if self.current is not None else "-"
        self._notes.append((self.now, who, what, more))

    def outline(self) -> list[tuple[float, str, str]]:
        """When who did what."""
        return [note[:3] for note in self._notes]

    def story(self) -> str:
        """Everything that was noted, a line each."""
        return "\n".join(
            f"{at - 1000:8.3f}  {who:14} {what} {more}" for at, who, what, more in self._notes
        )
