"""Boots every machine from its image."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Self

from vmfork.errors import ImageCorrupt, ImageNotFound
from vmfork.factory.kind import Kind
from vmfork.hypervisor.qemu import find_qemu
from vmfork.image import open_image
from vmfork.machine.launch import BootPlan, boot_base
from vmfork.machine.plan import plan_boot
from vmfork.template.traits import all_traits

if TYPE_CHECKING:
    from vmfork.config import Places, VMConfig
    from vmfork.machine.base import BaseVM
    from vmfork.progress import ProgressListener


class DirectFactory:
    """A plan that is carried out anew for every machine. Holds nothing open."""

    def __init__(self, plan: BootPlan, places: Places, progress: ProgressListener) -> None:
        self.kind = _kind_of(plan)
        self._plan = plan
        self._places = places
        self._progress = progress

    @classmethod
    async def open(cls, config: VMConfig, *, places: Places, progress: ProgressListener) -> Self:
        """A factory whose machines can be booted here. `ImageNotFound`, `ConfigError` (memory), `HostError`."""
        return cls(await plan_boot(config, places=places, progress=progress), places, progress)

    async def refresh(self) -> None:
        """The plan is for the image and the emulator that are here now. Errors are those of `open`."""
        if not await self._is_current():
            self._plan = await plan_boot(self._plan.config, places=self._places, progress=self._progress)
            self.kind = _kind_of(self._plan)

    async def get_base_vm(self, *, timeout_s: float | None = None) -> BaseVM:
        """A booted machine whose agent answers, within the configuration's `boot_timeout_s`. `LaunchError`."""
        await self.refresh()
        return await boot_base(self._plan, places=self._places)

    async def aclose(self) -> None:
        """Nothing is held; VMs given out live on."""

    async def _is_current(self) -> bool:
        """Whether planning again would give the same. Cheap: two links are followed (0.1 ms)."""
        planned = self._plan.image
        try:
            # A rebuilt image is another folder, and the former is gone; or, of the same recipe, another content.
            found = open_image(planned.name, images_dir=self._places.images)
        except (ImageNotFound, ImageCorrupt):
            return False
        same = replace(found, min_memory_mib=planned.min_memory_mib) == planned
        return same and await find_qemu(self._plan.config.qemu) == self._plan.binary


def _kind_of(plan: BootPlan) -> Kind:
    return Kind(
        name="direct",
        image=plan.image.name,
        traits=all_traits(plan.hardware, plan.binary, plan.image, plan.config),
        hardware=plan.hardware,
        generation=f"{plan.image.kernel_sha256} {plan.image.initramfs_sha256} {plan.binary.stamp}",
        shares_memory=False,
    )
