"""What owns something that must be released: it ends with its `async with` block, or by `aclose()`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Owner(ABC):
    """Base of every asynchronous owner. It is made owning: entering its block does nothing more."""

    @abstractmethod
    async def aclose(self) -> None:
        """What it owns is released, whatever state it is in. Closing again does nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
