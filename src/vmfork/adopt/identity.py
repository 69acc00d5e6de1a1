"""Who a VM is: what no other VM may share, given by the host and read back from the guest."""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_ENTROPY_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Everything that makes one VM itself, fresh for every VM. Nothing in it is secret.

    `generation` is the generation id, which the vmgenid device and the agent both give to the guest. With `reseed` the
    agent renews the kernel's random numbers from the host's; only tests switch it off.
    """

    vm_id: str
    generation: uuid.UUID
    hostname: str
    machine_id: str
    boot_id: uuid.UUID
    template: str = ""
    reseed: bool = True

    @classmethod
    def fresh(cls, vm_id: str, *, template: str = "", reseed: bool = True) -> Identity:
        """An identity nobody had before, from the host's random generator."""
        return cls(
            vm_id=vm_id,
            generation=uuid.uuid4(),
            hostname=f"vm-{vm_id}",
            machine_id=uuid.uuid4().hex,
            boot_id=uuid.uuid4(),
            template=template,
            reseed=reseed,
        )

    def items(self, env: Mapping[str, str], *, unset: Mapping[str, str] | None = None) -> list[tuple[str, bytes]]:
        """The request to adopt, with `env` for the guest's programs, in the order the agent works through it.

        The variables `unset` go before, where they have these values; only an agent that can keep programs does that.

        Its entropy is made here and kept nowhere. It comes first, because the items after it may already draw random
        numbers.
        """
        return [
            *([("entropy", secrets.token_bytes(_ENTROPY_BYTES))] if self.reseed else []),
            ("generation", self.generation.hex.encode()),
            ("fork-id", self.vm_id.encode()),
            *([("template", self.template.encode())] if self.template else []),
            ("hostname", self.hostname.encode()),
            ("machine-id", self.machine_id.encode()),
            ("boot-id", str(self.boot_id).encode()),
            *(("unset-env", _encode(*each)) for each in (unset or {}).items()),
            *(("env", _encode(*each)) for each in env.items()),
        ]


def _encode(name: str, value: str) -> bytes:
    return f"{name}={value}".encode("utf-8", "surrogateescape")
