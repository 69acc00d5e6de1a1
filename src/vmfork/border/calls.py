"""The public methods of a class, guarded."""

from __future__ import annotations

import inspect
from contextlib import aclosing
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from vmfork.border.arguments import Arguments
from vmfork.border.failures import translating
from vmfork.owner import find_opened, gives_owner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

T = TypeVar("T")


def guarded(kind: type[T]) -> type[T]:
    """Each public method of `kind` checks what it is given, and raises errors of vmfork's own alone.

    The blocking API passes its calls on to these, so there is one border for both. Properties are left alone: they tell
    what is known, and ask nobody. A constructor is guarded too; one that is not public takes nothing that `CHECKS`
    knows.
    """
    for name, member in [*vars(kind).items()]:
        if not name.startswith("_") or name == "__init__":
            setattr(kind, name, _guard_member(member))
    return kind


def _guard_member(member: Any) -> Any:
    if isinstance(member, (classmethod, staticmethod)):
        return type(member)(_guard(member.__func__))
    return _guard(member) if inspect.isfunction(member) else member


def _guard(function: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(function):
        return _guard_pieces(function)
    if (opened := find_opened(function)) is not None:
        return gives_owner(_guard_awaited(opened))
    return _guard_awaited(function) if inspect.iscoroutinefunction(function) else _guard_plain(function)


def _guard_awaited(function: Callable[..., Any]) -> Callable[..., Any]:
    arguments = Arguments(function)

    @wraps(function)
    async def call(*args: Any, **given: Any) -> Any:
        args, given = arguments.checked(args, given)
        with translating():
            return await function(*args, **given)

    return call


def _guard_plain(function: Callable[..., Any]) -> Callable[..., Any]:
    arguments = Arguments(function)

    @wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        args, given = arguments.checked(args, given)
        with translating():
            return function(*args, **given)

    return call


def _guard_pieces(function: Callable[..., Any]) -> Callable[..., Any]:
    arguments = Arguments(function)

    @wraps(function)
    async def pieces(*args: Any, **given: Any) -> AsyncIterator[Any]:
        args, given = arguments.checked(args, given)
        with translating():
            async with aclosing(function(*args, **given)) as found:
                async for piece in found:
                    yield piece

    return pieces
