"""What every factory offers beneath the outer one. Matching, adopting and falling back are done once, above."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.hypervisor.base import Hardware
    from vmfork.vm.base import BaseVM


class FactoryBase(Protocol):
    """Gives machines of one kind that are nobody's yet.

    `name` is for people. `traits` and `hardware` describe that kind: they come from what was really booted, never from
    today's configuration.
    """

    @property
    def name(self) -> str: ...

    @property
    def traits(self) -> Mapping[str, str]: ...

    @property
    def hardware(self) -> Hardware: ...

    @property
    def shares_memory(self) -> bool:
        """Whether a machine costs the host only what it has of its own."""

    async def refresh(self) -> bool:
        """Whether machines given before are of another kind than those given from now on."""

    async def get_base_vm(self) -> BaseVM: ...

    async def aclose(self) -> None: ...
