"""A machine of which another vmfork wrote how it is used, in a form that this one does not read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.machine.folder import folder_of, sweep_ended

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.machine.folder import VMRecord


class ForeignMachine:
    """It can be ended, and no more: what runs, and since when, every vmfork reads."""

    def __init__(self, vms: Path, record: VMRecord) -> None:
        self.id = record.id
        self._folder = folder_of(vms, record.id)
        self._process = record.process

    async def stop(self, *, grace_s: float = 0.0) -> None:
        """It has ended, at once whatever `grace_s` is: its guest could not be told. Nothing of it is left.

        Raises `OSError` when the host refuses to end its process.
        """
        del grace_s
        self._process.kill()
        await sweep_ended(self._folder)
