"""Boots every machine from its image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from vmfork.factory.kind import Kind
from vmfork.machine.launch import BootPlan, boot_base
from vmfork.machine.plan import plan_boot
from vmfork.template.traits import all_traits

if TYPE_CHECKING:
    from vmfork.config import Places, VMConfig
    from vmfork.machine.base import BaseVM
    from vmfork.progress import ProgressListener


class DirectFactory:
    """A plan that is carried out anew for every machine. Holds nothing open."""

    def __init__(self, plan: BootPlan, places: Places) -> None:
        self.kind = Kind(
            name="direct",
            traits=all_traits(plan.hardware, plan.binary, plan.image, plan.config),
            hardware=plan.hardware,
            generation="direct",
            shares_memory=False,
        )
        self._plan = plan
        self._places = places

    @classmethod
    async def open(cls, config: VMConfig, *, places: Places, progress: ProgressListener) -> Self:
        """A factory whose machines can be booted here. `ImageNotFound`, `ConfigError` (memory), `HostError`."""
        return cls(await plan_boot(config, places=places, progress=progress), places)

    async def refresh(self) -> None:
        """Nothing changes."""

    async def get_base_vm(self, *, timeout_s: float | None = None) -> BaseVM:
        """A booted machine whose agent answers, within the configuration's `boot_timeout_s`. `LaunchError`."""
        return await boot_base(self._plan, places=self._places)

    async def aclose(self) -> None:
        """Nothing is held; VMs given out live on."""
