"""A limit of time that names what ran out of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from vmfork.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def deadline(operation: str, limit_s: float | None) -> AsyncIterator[None]:
    """The block is done within `limit_s` seconds (`None`: no limit). Else raises `DeadlineExceeded` for `operation`."""
    scope = asyncio.timeout(limit_s)
    try:
        async with scope:
            yield
    except TimeoutError:
        if not scope.expired() or limit_s is None:
            raise
        raise DeadlineExceeded(operation, limit_s) from None
