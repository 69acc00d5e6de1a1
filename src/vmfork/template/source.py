"""A template as machines are made from it: found whole, fit for this host, opened anew for every fork."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Self

from vmfork.adopt.todo import Thaw
from vmfork.config import VMConfig
from vmfork.errors import ImageCorrupt, ImageNotFound, TemplateCorrupt, TemplateNotFound, TemplateStale
from vmfork.host import kvm
from vmfork.hypervisor.qemu import choose_cpu_model
from vmfork.image import ImageStore
from vmfork.image.derived import is_derived
from vmfork.machine.card import check_has_card
from vmfork.machine.disk import plan_disk
from vmfork.machine.emulator import find_emulator_like
from vmfork.machine.facts import Descent, Make
from vmfork.machine.growth import plan_growth
from vmfork.machine.launch import Frozen, restore_base
from vmfork.machine.naming import check_vm_name
from vmfork.machine.traits import agent_reseeds, emulator_traits, image_traits, wanted_traits
from vmfork.machine.verdict import locate_verdict, read_verdict
from vmfork.store import TemplateStore
from vmfork.template.names import name_done
from vmfork.template.removal import remove_template
from vmfork.template.scratch import opened_disk
from vmfork.travel.fit import find_misfit, hardware_of

if TYPE_CHECKING:
    from vmfork.config import CardChoice, Instance
    from vmfork.hypervisor.base import Hardware
    from vmfork.hypervisor.qemu import QemuBinary
    from vmfork.machine.base import BaseVM
    from vmfork.machine.request import ForkRequest, Standing
    from vmfork.store import Manifest

_log = logging.getLogger("vmfork")


@cache
def _warn_of_age(name: str) -> None:
    _log.warning(
        "note: template %r was built under TCG, many times slower than KVM, which runs its guest here by now. To use"
        " that, build it again: vmfork template build %s --replace",
        name,
        name,
    )


class Source:
    """One generation of a template. A value: it holds nothing open.

    When the template is replaced or removed, `fork_base` raises `TemplateNotFound`; open the name again for its
    successor.
    """

    def __init__(self, manifest: Manifest, config: VMConfig, instance: Instance) -> None:
        self.manifest = manifest
        self.fork_timeout_s = config.fork_timeout_s
        self.hook_timeout_s = config.hook_timeout_s
        self._config = config
        self._instance = instance
        self._store = TemplateStore(instance.places.templates)

    @classmethod
    async def open(cls, name: str, *, config: VMConfig, instance: Instance) -> Self:
        """The template in force under `name`, its files whole, fit for this host's emulator, accelerator and image.

        `config` gives the emulator's path, its isolation, the time limits of a fork and what of the host it may have,
        nothing else: what was booted is in the template. Raises `TemplateNotFound`, `TemplateStale` (field, have,
        want), and `TemplateCorrupt`.
        """
        with TemplateStore(instance.places.templates).open(name) as opened:
            manifest = opened.manifest
        source = cls(manifest, config, instance)
        binary = await source._find_emulator()
        source._check_host(binary)
        if source.hardware.accel == "tcg" and config.accel == "auto":
            source._warn_of_tcg(binary)
        return source

    async def renew(self) -> Self:
        """The template in force under the same name now: this one, or its successor. Raises what `open` raises.

        Cheap enough for every request (0.13 ms): files of a generation that is known are not looked at again.
        """
        m = self.manifest
        if self._store.find_generation(m.name) == m.generation:
            # The emulator or the image may have been replaced since: what forks today may not be what was frozen.
            self._check_host(await self._find_emulator())
            return self
        return await self.open(m.name, config=self._config, instance=self._instance)

    @classmethod
    async def find(
        cls, name: str, config: VMConfig | None, *, instance: Instance, any_kind: bool = False
    ) -> Self | None:
        """The template `name`, or `None` when it is missing, or does not fit this host or `config`.

        Without `config`, or with `any_kind`, any that fits this host will do. Sizes are not compared.
        """
        try:
            source = await cls.open(name, config=config or VMConfig(), instance=instance)
            if config is not None and not any_kind:
                source.check_config(config)
        except (TemplateNotFound, TemplateStale, TemplateCorrupt):
            return None
        return source

    @property
    def hardware(self) -> Hardware:
        """What its machines are made of."""
        return hardware_of(self.manifest)

    @property
    def instance(self) -> Instance:
        """Where it is, and who is told of progress."""
        return self._instance

    @property
    def recipe(self) -> str:
        """Names what was done to it; empty where nothing was."""
        return name_done(self.manifest)

    def check_request(self, request: ForkRequest) -> None:
        """Raises `ConfigError` when its machines cannot be what `request` asks."""
        check_has_card(request.card, self.hardware, whose=f"template {self.manifest.name!r}")
        self._plan_disk(request.disk_mib)
        if request.grows:
            plan_growth(
                self.hardware,
                cpus=request.cpus,
                memory_mib=request.memory_mib,
                whose=f"template {self.manifest.name!r}",
            )

    def check_standing(self, standing: Standing) -> None:
        """Raises `VMExists` when a living VM has the name that is asked for; then nobody need make a fork."""
        if standing.name:
            check_vm_name(standing.name, self._instance.places.vms)

    def _plan_disk(self, wanted_mib: int | None) -> int:
        m = self.manifest
        return plan_disk(wanted_mib, self.hardware, m.agent_capabilities, whose=f"template {m.name!r}")

    async def fork_base(
        self, *, wait_s: float | None = None, card: CardChoice = "none", disk_mib: int | None = None
    ) -> BaseVM:
        """A machine restored from this generation. It has no identity yet: adopt it before use.

        Its card, where it has one, leads to what `card` says. With `disk_mib` it has a disk of that size, which its
        guest finds when it adopts; `None` is what the template has. Raises `NoRoom` when the host has none for it after
        `wait_s` seconds, by default those of the configuration.
        """
        m, limits = self.manifest, self._config.limits
        if wait_s is not None:
            limits = replace(limits, wait_s=wait_s)
        # The distribution may have replaced the emulator since this was opened.
        binary = await self._find_emulator()
        m.check_traits(emulator_traits(self.hardware, binary))
        places = self._instance.places
        with self._store.open(m.name, generation=m.generation) as opened, opened_disk(m, places) as scratch_fd:
            self._store.note_use(m.name)
            frozen = Frozen(
                template=m.name,
                image=m.image,
                hardware=self.hardware,
                memory_fd=opened.memory_fd,
                state_fd=opened.state_fd,
                thaw=Thaw(hooks=m.hooks, watchers=m.watchers, greets=m.live, unset=m.unset),
                descent=Descent.below_template(m.name, m.generation, m.ancestors),
                reseed=agent_reseeds(m.traits["reseed"]),
                limits=limits,
                card=card,
                scratch_fd=scratch_fd,
                disk_mib=self._plan_disk(disk_mib),
                make=Make(
                    traits=m.traits,
                    qemu_path=str(binary.path),
                    qemu_stamp=binary.stamp,
                    agent_protocol=m.agent_protocol,
                    agent_version=m.agent_version,
                    agent_capabilities=m.agent_capabilities,
                    policy=self._config.isolation_policy,
                ),
            )
            return await restore_base(frozen, binary=binary, instance=self._instance)

    def _warn_of_tcg(self, binary: QemuBinary) -> None:
        """Said once per process: what keeps this user from KVM, or that the template was made before there was KVM."""
        kvm.warn_if_forbidden()
        m = self.manifest
        if kvm.find_refusal() is not None or m.came_from:
            return
        with suppress(ImageNotFound):
            image = ImageStore(self._instance.places.images).open(m.image)
            model = choose_cpu_model(self._config.cpu_model, "kvm")
            path = locate_verdict(
                image=image,
                binary=binary,
                machine=m.traits["machine"],
                cpu_model=model,
                places=self._instance.places,
            )
            if (verdict := read_verdict(path)) is not None and verdict.usable:
                _warn_of_age(m.name)

    def check_config(self, config: VMConfig) -> None:
        """Raises `TemplateStale` when a build from `config` would give other machines; their size is not compared."""
        m = self.manifest
        if config.image not in (m.image, m.base_image):
            raise TemplateStale(m.name, "image", m.image, config.image)
        m.check_traits(wanted_traits(config, machine=m.traits["machine"], accel=m.traits["accel"]))

    def verify(self) -> None:
        """Every byte is what was frozen. Raises `TemplateCorrupt`, naming the file that is not."""
        self._store.verify(self.manifest.name)

    async def remove(self) -> None:
        """No template of this name exists; forks made from it run on. Raises `TemplateNotFound`, `StoreBusy`."""
        await remove_template(self.manifest.name, places=self._instance.places)

    async def _find_emulator(self) -> QemuBinary:
        m = self.manifest
        version = m.traits.get("qemu.version", "")
        return await find_emulator_like(
            m.qemu_path, version, m.qemu_stamp, configured=self._config.qemu, places=self._instance.places
        )

    def _check_host(self, binary: QemuBinary) -> None:
        m = self.manifest
        if (misfit := find_misfit(m, binary)) is not None:
            raise TemplateStale(m.name, *misfit)
        if m.came_from:
            return  # an image of the same name here is another
        images = ImageStore(self._instance.places.images)
        if m.base_image:
            with suppress(ImageNotFound, ImageCorrupt):  # nor does it need that one
                base = images.open(m.base_image)
                if not is_derived(m.image, base):
                    raise TemplateStale(m.name, "image.base", m.image, f"{m.base_image} with {base.digest[:12]}")
        try:
            image = images.open(m.image)
        except ImageNotFound:
            return  # a template works without its image: the template's RAM holds all of it
        m.check_traits(image_traits(image))
