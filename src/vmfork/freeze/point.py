"""What a machine can go back to."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol, Self

from vmfork.errors import Closed, ConfigError
from vmfork.freeze.captured import capture
from vmfork.host.bound import Bound

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from vmfork.config import Limits
    from vmfork.freeze.captured import Captured
    from vmfork.hypervisor.base import Hardware
    from vmfork.machine.facts import Descent, Make
    from vmfork.machine.launch import Frozen
    from vmfork.machine.running import Running
    from vmfork.wire.message import Kept


class Point(Protocol):
    """A machine as it was at one moment, `pause_s` seconds of which it stood still."""

    @property
    def vm_id(self) -> str: ...

    @property
    def name(self) -> str:
        """What it is kept under; empty for one that is not."""

    @property
    def pause_s(self) -> float: ...

    @property
    def is_closed(self) -> bool: ...

    @property
    def memory_bytes(self) -> int:
        """Bytes of the host's memory that it takes, whoever reads them."""

    @property
    def make(self) -> Make:
        """How the machine was made."""

    @property
    def hardware(self) -> Hardware:
        """What the machine was made of."""

    def open(self, *, limits: Limits, descent: Descent) -> AbstractContextManager[Frozen]:
        """What a machine is made from, which may have so much of the host and descends so."""

    def check(self, vm_id: str) -> None:
        """Raises `ConfigError` when it is another machine's, `Closed`, and `WrongContext`."""

    def close(self) -> None:
        """We have it no more. Closing again does nothing."""

    async def remove(self) -> None:
        """Nothing is left of it."""


class MemoryPoint:
    """Owner of a machine as it was at one moment, in files without a name. They go with it, and with our process."""

    name = ""

    def __init__(self, captured: Captured, opened: ExitStack) -> None:
        self.is_closed = False
        self._captured = captured
        self._bound = Bound(f"a checkpoint of VM {self.vm_id}")
        self._opened = opened

    @classmethod
    async def take(cls, running: Running, *, hooks: bool, hook_timeout_s: float) -> Self:
        """The machine as it is now, which runs on. It ends with the machine. Raises what `capture` raises."""
        with ExitStack() as on_failure:
            # Programs that may fork it ask on once it is back.
            keeps: Sequence[Kept] = () if running.inside is None else ("asks",)
            captured = await capture(running, on_failure, hooks=hooks, keeps=keeps, hook_timeout_s=hook_timeout_s)
            point = cls(captured, on_failure.pop_all())
        running.points.add(point)
        return point

    @property
    def vm_id(self) -> str:
        return self._captured.facts.identity.vm_id

    @property
    def pause_s(self) -> float:
        return self._captured.moment.copied.pause_s

    @property
    def memory_bytes(self) -> int:
        return 0 if self.is_closed else self._captured.moment.memory_bytes

    @property
    def make(self) -> Make:
        return self._captured.make

    @property
    def hardware(self) -> Hardware:
        return self._captured.facts.hardware

    def open(self, *, limits: Limits, descent: Descent) -> AbstractContextManager[Frozen]:
        return self._captured.open(limits=limits, descent=descent)

    def check(self, vm_id: str) -> None:
        check_owner(self, vm_id)
        self._bound.check()
        if self.is_closed:
            raise Closed(f"the checkpoint of VM {vm_id}", "take another: vm.checkpoint()")

    def close(self) -> None:
        if not (self.is_closed or self._bound.is_forked):
            self.is_closed = True
            self._opened.close()

    async def remove(self) -> None:
        self.close()


def check_owner(point: Point, vm_id: str) -> None:
    """Raises `ConfigError` when the point is of another machine than that of the id."""
    if point.vm_id != vm_id:
        reason = f"it is a checkpoint of VM {point.vm_id}, and this is VM {vm_id}"
        raise ConfigError("checkpoint", point.vm_id, reason, hint="go back to one of its own")
