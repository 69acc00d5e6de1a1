"""What owns something that must be released: it ends with its `async with` block, or by `aclose()`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, Self, TypeVar

from vmfork.errors import WrongContext

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType


class Owner(ABC):
    """Base of every asynchronous owner. It is made owning: entering its block does nothing more."""

    def __reduce__(self) -> NoReturn:
        hint = "make one where it is used; a machine can be handed over: vm.detach() gives a handle, for VM.attach()"
        raise WrongContext(repr(self), "cannot be pickled or copied: what it owns has one owner", hint=hint)

    @abstractmethod
    async def aclose(self) -> None:
        """What it owns is released, whatever state it is in. Closing again does nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


P = ParamSpec("P")
T = TypeVar("T", bound=Owner)
_OPENED = "vmfork_opened"


class Opening(Coroutine[Any, Any, T]):
    """A call that gives an owner: awaited, or entered by `async with`, whose block ends what the call gave.

    It is a coroutine in all else, so that it may be a task, or be run by `asyncio.run`.
    """

    __slots__ = ("_owner", "_work")

    _owner: T

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work

    async def __aenter__(self) -> T:
        self._owner = await self._work
        return await self._owner.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._owner.__aexit__(kind, error, trace)

    def __await__(self) -> Generator[Any, Any, T]:
        return self._work.__await__()

    def send(self, value: Any, /) -> Any:
        return self._work.send(value)

    def throw(self, *error: Any) -> Any:
        return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()


def gives_owner(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Opening[T]]:
    """`function`, whose call can be entered as well as awaited."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Opening[T]:
        return Opening(function(*args, **kwargs))

    setattr(call, _OPENED, function)
    return call


def find_opened(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]] | None:
    """What `gives_owner` was given to make `function`, or `None`."""
    found: Callable[..., Coroutine[Any, Any, Any]] | None = getattr(function, _OPENED, None)
    return found
