"""Boots every machine from its image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from vmfork.machine.launch import BootPlan, boot_base
from vmfork.machine.plan import plan_boot
from vmfork.template.traits import all_traits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.config import Places, VMConfig
    from vmfork.hypervisor.base import Hardware
    from vmfork.machine.base import BaseVM
    from vmfork.progress import ProgressListener


class DirectFactory:
    """A plan that is carried out anew for every machine. Holds nothing open."""

    def __init__(self, plan: BootPlan, places: Places) -> None:
        self._plan = plan
        self._places = places

    @classmethod
    async def open(cls, config: VMConfig, *, places: Places, progress: ProgressListener) -> Self:
        """A factory whose machines can be booted here. `ImageNotFound`, `ConfigError` (memory), `HostError`."""
        return cls(await plan_boot(config, places=places, progress=progress), places)

    @property
    def name(self) -> str:
        return "direct"

    @property
    def traits(self) -> Mapping[str, str]:
        plan = self._plan
        return all_traits(plan.hardware, plan.binary, plan.image, plan.config)

    @property
    def hardware(self) -> Hardware:
        return self._plan.hardware

    @property
    def shares_memory(self) -> bool:
        return False

    @property
    def kind(self) -> str:
        """One for good: the plan stands."""
        return "direct"

    async def refresh(self) -> None:
        """Nothing changes."""

    async def get_base_vm(self, *, timeout_s: float | None = None) -> BaseVM:
        """A booted machine whose agent answers, within the configuration's `boot_timeout_s`. `LaunchError`."""
        return await boot_base(self._plan, places=self._places)

    async def aclose(self) -> None:
        """Nothing is held; VMs given out live on."""
