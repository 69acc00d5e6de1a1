"""A point of a running machine to come back to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.border import guarded
from vmfork.owner import Owner

if TYPE_CHECKING:
    from vmfork.freeze.point import Point


@guarded
class Checkpoint(Owner):
    """Owner of a VM as it was at one moment. Leaving its `async with` block leaves nothing of it; so does its VM's end.

    Made by `VM.checkpoint`, and good for any number of `VM.rollback`. One that lasts is its VM's own: it stays until it
    is removed, or the VM was stopped.
    """

    vm_id: str
    """The VM that it is of."""
    name: str
    """What one that lasts is found by; empty for any other."""
    pause_s: float
    """The VM stood still so many seconds for it."""

    def __init__(self, point: Point) -> None:
        self.vm_id = point.vm_id
        self.name = point.name
        self.pause_s = point.pause_s
        self._point = point

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<Checkpoint{name} of VM {self.vm_id}{', closed' if self._point.is_closed else ''}>"

    @property
    def memory_bytes(self) -> int:
        """Bytes of the host's memory that it takes: what the VM had for itself then, or, of one that lasts, all."""
        return self._point.memory_bytes

    async def remove(self) -> None:
        """Nothing is left of it, one that lasts or not. Again it does nothing."""
        await self._point.remove()

    async def aclose(self) -> None:
        """Nothing is left of it, unless it lasts, or the VM reads its memory since a rollback."""
        self._point.close()


def point_of(checkpoint: Checkpoint) -> Point:
    """What the checkpoint is made of, for the VM that goes back to it."""
    return checkpoint._point  # noqa: SLF001 - hidden from callers of the library alone
