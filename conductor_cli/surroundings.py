"""What all runs of a process have in common, entered once: state, context variables, middleware."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from conductor_cli import middleware
from conductor_cli.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from conductor_cli.middleware import Layer
    from conductor_cli.sections import Tasks


class Surroundings:
    """While entered: ``state`` is what ``[tasks] setup`` has yielded, and ``context`` holds what it
    has put into context variables. Each run has a copy of that."""

    def __init__(self, tasks: Tasks) -> None:
        self.state: Any = None
        self.context = Context()
        self.middleware: tuple[Layer, ...] = ()
        self._tasks = tasks
        self._setup: AbstractContextManager[Any] | None = None

    def __enter__(self) -> Surroundings:
        """Raises ConfigError, and whatever the setup raises."""
        self.middleware = tuple(map(_layer, self._tasks.middleware))
        if self._tasks.setup is not None:
            # A variable is reset by a token, which is good in the context that made it only. So
            # the setup ends in the context in which it began, whatever thread that happens in.
            self.context = copy_context()
            self._setup = _loaded("setup", self._tasks.setup)()
            self.state = self.context.run(self._setup.__enter__)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        setup, self._setup = self._setup, None
        if setup is not None:
            self.context.run(setup.__exit__, kind, error, trace)


def _layer(place: str) -> Layer:
    layer: Layer = _loaded("middleware", place)
    if middleware.is_awaited(layer):
        raise ConfigError(
            f"[tasks] middleware names {place!r}, which is for async tasks only; it stands around "
            "plain tasks as well, so give it a @contextmanager, or name it in @task(middleware=)."
        )
    try:
        middleware.check([layer], is_async=False)
    except TypeError as error:
        raise ConfigError(f"[tasks] middleware names {place!r}: {error}") from None
    return layer


def _loaded(key: str, place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"[tasks] {key} = {place!r} cannot be loaded: {error}") from error
    return found
