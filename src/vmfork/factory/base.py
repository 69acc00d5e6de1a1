"""What every factory offers beneath the outer one. Matching, adopting and falling back are done once, above."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.vm.base import BaseVM


class FactoryBase(Protocol):
    """Gives machines of one kind that are nobody's yet.

    `traits`, `cpus` and `memory_mib` describe that kind: they come from what was really booted, never from today's
    configuration.
    """

    @property
    def traits(self) -> Mapping[str, str]: ...

    @property
    def cpus(self) -> int: ...

    @property
    def memory_mib(self) -> int: ...

    async def get_base_vm(self) -> BaseVM: ...

    async def aclose(self) -> None: ...
