"""What stands around each run of a task, as ``[tasks] setup`` stands around the process.

A layer is a function that is given the run's context and returns a context manager. Whatever it
does with an error, the error ends the run: a layer may replace one, and cannot swallow one.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Layer: TypeAlias = "Callable[[Any], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]"


def check(layers: object, *, is_async: bool) -> None:
    """Raise TypeError for the first that is no layer, or none for such a task."""
    if not isinstance(layers, Sequence) or isinstance(layers, str):
        raise TypeError(f"middleware={layers!r} is not a list of functions")
    for layer in layers:
        if not callable(layer):
            raise TypeError(f"middleware holds {layer!r}, which is no function")
        if inspect.isgeneratorfunction(layer) or inspect.isasyncgenfunction(layer):
            raise TypeError(
                f"middleware holds {name_of(layer)}, a generator; decorate it with @contextmanager"
            )
        if is_awaited(layer) and not is_async:
            raise TypeError(
                f"middleware holds {name_of(layer)}, which is for async tasks only; a plain task "
                "takes a @contextmanager"
            )


def is_awaited(layer: Any) -> bool:
    """Whether it makes an asynchronous context manager, as far as can be seen."""
    if isinstance(layer, type):
        return hasattr(layer, "__aenter__") and not hasattr(layer, "__enter__")
    return inspect.isasyncgenfunction(inspect.unwrap(layer))


def name_of(layer: Any) -> str:
    return str(getattr(layer, "__qualname__", None) or repr(layer))


def around(layers: Sequence[Layer], context: Any, call: Callable[[], Any]) -> Any:
    """What ``call`` returns, inside all the layers, the first of them outside."""
    if not layers:
        return call()
    raised: BaseException | None = None
    try:
        with _plain(layers[0], context):
            try:
                value = around(layers[1:], context, call)
            except BaseException as error:
                raised = error
                raise
        if raised is not None:
            raise raised
        return value
    finally:
        del raised  # it refers to this frame


async def around_async(
    layers: Sequence[Layer], context: Any, call: Callable[[], Awaitable[Any]]
) -> Any:
    """As ``around``, for an async task; a layer may be asynchronous, too."""
    if not layers:
        return await call()
    raised: BaseException | None = None

    async def inner() -> Any:
        nonlocal raised
        try:
            return await around_async(layers[1:], context, call)
        except BaseException as error:
            raised = error
            raise

    try:
        made = layers[0](context)
        if isinstance(made, AbstractAsyncContextManager):
            async with made:
                value = await inner()
        else:
            with _checked(made, layers[0]):
                value = await inner()
        if raised is not None:
            raise raised
        return value
    finally:
        raised = None  # it refers to this frame


def _plain(layer: Layer, context: Any) -> AbstractContextManager[Any]:
    return _checked(layer(context), layer)


def _checked(made: object, layer: Layer) -> AbstractContextManager[Any]:
    if not isinstance(made, AbstractContextManager):
        raise TypeError(
            f"The middleware {name_of(layer)} returned {made!r}, which is no context manager: "
            "decorate it with @contextmanager."
        )
    return made
