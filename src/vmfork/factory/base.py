"""What every factory offers beneath the outer one. Matching, adopting and falling back are done once, above."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.hypervisor.base import Hardware
    from vmfork.machine.base import BaseVM


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

    @property
    def kind(self) -> str:
        """Names what machines are made from: another name after it was replaced."""

    async def refresh(self) -> None:
        """`kind`, `traits` and `hardware` are those of machines given from now on."""

    async def get_base_vm(self, *, timeout_s: float | None = None) -> BaseVM:
        """A machine that is the caller's alone. `timeout_s` bounds the wait where others make it, `None` does not."""

    async def aclose(self) -> None: ...


@runtime_checkable
class Listener(Protocol):
    """A base that wants to know what became of its machines, and of requests it could have served."""

    def tell(self, *, phases: Mapping[str, float] | None = None, fallback: str = "") -> None:
        """It is told in the background."""
