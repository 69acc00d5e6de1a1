"""Boots every machine from its image."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Self

from vmfork.errors import ImageCorrupt, ImageNotFound
from vmfork.factory.kind import Kind
from vmfork.hypervisor.qemu import find_qemu
from vmfork.image import ImageStore
from vmfork.machine.launch import boot_base
from vmfork.machine.prepare import prepare

if TYPE_CHECKING:
    from vmfork.config import Instance, VMConfig
    from vmfork.machine.base import BaseVM
    from vmfork.machine.plan import Plan


class DirectFactory:
    """A plan that is carried out anew for every machine. Holds nothing open."""

    def __init__(self, plan: Plan, config: VMConfig, instance: Instance) -> None:
        self.kind = _kind_of(plan)
        self._plan = plan
        self._config = config
        self._instance = instance

    @classmethod
    async def open(cls, config: VMConfig, *, instance: Instance) -> Self:
        """A factory whose machines can be booted here. Raises `ImageNotFound`, `ConfigError` (memory), `HostError`."""
        return cls(await prepare(config, instance), config, instance)

    async def refresh(self) -> None:
        """The plan is for the image and the emulator that are here now. Raises what `open` raises."""
        if not await self._is_current():
            self._plan = await prepare(self._config, self._instance)
            self.kind = _kind_of(self._plan)

    async def get_base_vm(self, *, timeout_s: float | None = None) -> BaseVM:
        """A booted machine whose agent answers. Raises `LaunchError`, after `boot_timeout_s` seconds at the latest."""
        await self.refresh()
        return await boot_base(self._plan, instance=self._instance)

    async def aclose(self) -> None:
        """Nothing is held; VMs given out live on."""

    async def _is_current(self) -> bool:
        """Whether planning again would give the same. Cheap: two links are followed (0.1 ms)."""
        planned = self._plan.image
        try:
            # A rebuilt image lies in another folder, or has another content, and the former is gone.
            image = ImageStore(self._instance.places.images).open(planned.name)
        except (ImageNotFound, ImageCorrupt):
            return False
        same = replace(image, min_memory_mib=planned.min_memory_mib) == planned
        if not same:
            return False
        # The emulator that was chosen may be another file, of the version that is found.
        chosen, found = self._plan.binary, await find_qemu(self._config.qemu)
        return found == chosen or (found.version == chosen.version and chosen.is_unchanged())


def _kind_of(plan: Plan) -> Kind:
    return Kind(
        name="direct",
        image=plan.image.name,
        traits=plan.traits,
        hardware=plan.hardware,
        generation=f"{plan.image.kernel_sha256} {plan.image.initramfs_sha256} {plan.binary.stamp}",
        shares_memory=False,
        where="booted",
    )
