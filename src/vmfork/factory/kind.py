"""What machines a base gives, and how it is asked for them. Matching, adopting and falling back are done above."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from vmfork.hypervisor.qemu import board_of, default_cpu_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.config import VMConfig
    from vmfork.hypervisor.base import Hardware
    from vmfork.machine.base import BaseVM
    from vmfork.machine.origin import Where

_DIGEST_SIZE = 16
# Traits that have the name and the values of a field of the configuration.
_TOLD = ("kernel_args", "reseed", "aslr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What the machines of a base are: what was really booted, never what a configuration says today.

    `name` is for people; `image` is the name of the image that was booted. `generation` names what the machines are
    made from: it changes when that is replaced, even by something with the same traits. With `shares_memory` a machine
    costs the host only the pages that it wrote. `where` tells their users where they come from.
    `template` is the name of the template that they are forked from; empty where they are booted. `recipe` names its
    warm-up and ready check, empty where it has neither; with either, or with hooks, they are `is_warmed`: more than a
    machine that was booted.
    """

    name: str
    image: str
    traits: Mapping[str, str]
    hardware: Hardware
    generation: str
    shares_memory: bool
    where: Where
    template: str = ""
    recipe: str = ""
    is_warmed: bool = False

    @property
    def made_from(self) -> str:
        """The template that they are forked from, for people; empty where they are booted."""
        return f"template {self.template!r}" if self.template else ""

    @property
    def digest(self) -> str:
        """Names traits and hardware together: the same for machines that cannot be told apart."""
        told = json.dumps([dict(self.traits), asdict(self.hardware)], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:_DIGEST_SIZE]

    def to_config(self, own: VMConfig) -> VMConfig:
        """What asks for a machine of this kind. `own` gives what says nothing of the machine, such as time limits."""
        have = self.hardware
        told: dict[str, Any] = {key: self.traits[key] for key in _TOLD if key in self.traits}
        return replace(
            own,
            image=self.image,
            cpus=have.cpus,
            memory_mib=have.memory_mib,
            max_cpus=have.max_cpus,
            max_memory_mib=have.max_memory_mib,
            disk_mib=have.scratch_mib,
            machine=board_of(have.machine).kind,
            cpu_model="" if have.cpu_model == default_cpu_model(have.accel) else have.cpu_model,
            **told,
        )


class Base(Protocol):
    """Gives machines of one kind. They have no identity yet, and adopt one when they are given to a caller."""

    @property
    def kind(self) -> Kind:
        """What the machines were when it was last looked at."""

    async def refresh(self) -> None:
        """`kind` is that of machines given from now on."""

    async def get_base_vm(self, *, timeout_s: float | None = None) -> BaseVM:
        """A machine that is the caller's alone. `timeout_s` bounds the wait when others make it (`None`: no bound)."""

    async def aclose(self) -> None: ...


@runtime_checkable
class Listener(Protocol):
    """A base that wants to know what became of its machines, and of requests that it could have served."""

    def report(self, *, phases: Mapping[str, float] | None = None, fallback: str = "") -> None:
        """Returns at once; the report goes out in the background."""
