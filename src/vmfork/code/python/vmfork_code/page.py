"""What the server and an interpreter know of each other without a word: numbers in memory that both see."""

from __future__ import annotations

import mmap
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNNING, STOPPED, PASSED = range(3)


class Page:
    """Made before the interpreter is forked off.

    Each side says what it is about to do, and then looks at the other's word; between the two is a system call, whose
    locks keep them in order. So of two that cross, one sees the other.
    """

    def __init__(self) -> None:
        self.words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("I")

    @property
    def is_running(self) -> bool:
        """Whether a call runs: what is written now is output of it."""
        return self.words[RUNNING] != 0

    @is_running.setter
    def is_running(self, value: bool) -> None:
        self.words[RUNNING] = value

    @property
    def is_stopped(self) -> bool:
        """Whether a call that begins now is to end at once."""
        return self.words[STOPPED] != 0

    @is_stopped.setter
    def is_stopped(self, value: bool) -> None:
        self.words[STOPPED] = value

    @property
    def passed(self) -> int:
        """How often output was taken, and passed on or dropped, twice counted: odd while that is being done."""
        return self.words[PASSED]

    @contextmanager
    def passing(self) -> Iterator[None]:
        """The server takes output."""
        self.words[PASSED] = self.words[PASSED] + 1 & 0xFFFFFFFF
        try:
            yield
        finally:
            self.words[PASSED] = self.words[PASSED] + 1 & 0xFFFFFFFF
