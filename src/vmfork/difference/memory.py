"""The memory of two machines: how many pages differ. It is read on the host; no guest does anything for it."""

from __future__ import annotations

import asyncio
import os
from array import array
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vmfork.freeze.live import end_told, find_memory
from vmfork.host.mapped import MappedMemory

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from vmfork.machine.running import Running

_PAGE = 4096
_ZEROS = bytes(_PAGE)
# Documentation/admin-guide/mm/pagemap.rst: present, or swapped out; and of a file.
_THERE, _OF_FILE = 3 << 62, 1 << 61


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryDifference:
    """`pages` of 4 KiB that differ, and how many each machine has for itself.

    It is a look at two machines that run, at no one moment: what they write meanwhile may be in it or not.
    """

    pages: int
    ours: int
    theirs: int

    @property
    def mib(self) -> float:
        """The pages that differ, in MiB."""
        return self.pages * _PAGE / 2**20


@dataclass(frozen=True, slots=True)
class _Piece:
    """So many pages of a memory: where they begin in it, and where the emulator has them."""

    first: int
    count: int
    address: int


class _Pages:
    """A machine's memory page by page; a page is named by its place in the file that a copy would have."""

    def __init__(self, mapped: MappedMemory, pieces: list[_Piece]) -> None:
        self._mapped = mapped
        self._pieces = pieces
        self._layers = [(fd, _find_data(fd)) for fd in mapped.held]
        self.own = {page for piece in pieces for page in _find_own(mapped.pagemap_fd, piece)}

    @classmethod
    async def look(cls, running: Running, opened: ExitStack) -> Self:
        mapped = opened.enter_context(await MappedMemory.ask(running.machine.keeper))
        pieces, first = [], 0
        for span in (await find_memory(running)).pieces:
            address = await running.machine.locate_memory(span.start)
            pieces.append(_Piece(first, span.size // _PAGE, address))
            first += span.size // _PAGE
        return await asyncio.to_thread(cls, mapped, pieces)

    def find_touched(self, other: _Pages) -> set[int]:
        """Pages that may differ from those of another machine: what is of a file that both have, cannot."""
        theirs = {_name(fd) for fd, _ in other._layers}
        return self.own.union(*(data for fd, data in self._layers if _name(fd) not in theirs))

    def read(self, page: int) -> bytes:
        piece = next((each for each in self._pieces if each.first <= page < each.first + each.count), None)
        if piece is None:
            return _ZEROS
        if page in self.own:
            return os.pread(self._mapped.memory_fd, _PAGE, piece.address + (page - piece.first) * _PAGE)
        # What was added lies in the last file alone.
        layers = self._layers if piece.first == 0 else self._layers[-1:]
        for fd, data in reversed(layers):
            if page in data:
                return os.pread(fd, _PAGE, page * _PAGE)
        return _ZEROS


def _name(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _find_data(fd: int) -> AbstractSet[int]:
    """Pages of the file that are no holes: a hole that is read would become a page of the host's memory."""
    found: set[int] = set()
    end = 0
    with suppress(OSError):  # ENXIO: no data behind it
        while True:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
            found.update(range(start // _PAGE, -(-end // _PAGE)))
    return found


def _find_own(pagemap_fd: int, piece: _Piece) -> list[int]:
    entries = array("Q")
    entries.frombytes(os.pread(pagemap_fd, piece.count * 8, piece.address // _PAGE * 8))
    return [piece.first + at for at, entry in enumerate(entries) if entry & _THERE and not entry & _OF_FILE]


def _count(ours: _Pages, theirs: _Pages) -> MemoryDifference:
    touched = ours.find_touched(theirs) | theirs.find_touched(ours)
    pages = sum(ours.read(page) != theirs.read(page) for page in touched)
    return MemoryDifference(pages=pages, ours=len(ours.own), theirs=len(theirs.own))


async def compare_memory(ours: Running, theirs: Running) -> MemoryDifference:
    """How many pages differ.

    Raises `HostError` where this host lets nobody read a machine's memory, and `MachineEnded`.
    """
    async with end_told(ours), end_told(theirs):
        with ExitStack() as opened:
            mine, other = await _Pages.look(ours, opened), await _Pages.look(theirs, opened)
            return await asyncio.to_thread(_count, mine, other)
