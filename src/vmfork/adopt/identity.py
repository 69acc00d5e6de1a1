"""Who a VM is: what no other VM may share, given by the host and read back from the guest."""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

ENTROPY_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Everything that makes one VM itself. Fresh for every VM; `entropy` is 64 bytes and never shown, or empty where
    the agent shall not reseed the kernel's generator, which is for tests only.

    `generation` is the generation id (a UUID), given to the guest by the vmgenid device and by the agent alike.
    """

    vm_id: str
    generation: uuid.UUID
    hostname: str
    machine_id: str
    boot_id: uuid.UUID
    template: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    entropy: bytes = field(repr=False, default=b"")

    @classmethod
    def fresh(
        cls, vm_id: str, *, template: str = "", env: Mapping[str, str] | None = None, reseed: bool = True
    ) -> Identity:
        """An identity nobody had before, from the host's random generator."""
        return cls(
            vm_id=vm_id,
            generation=uuid.uuid4(),
            hostname=f"vm-{vm_id}",
            machine_id=uuid.uuid4().hex,
            boot_id=uuid.uuid4(),
            template=template,
            env=check_env(env or {}),
            entropy=secrets.token_bytes(ENTROPY_BYTES) if reseed else b"",
        )

    def items(self) -> list[tuple[str, bytes]]:
        """The request to adopt, in the order the agent works through it: entropy first."""
        return [
            *([("entropy", self.entropy)] if self.entropy else []),
            ("generation", self.generation.hex.encode()),
            ("fork-id", self.vm_id.encode()),
            *([("template", self.template.encode())] if self.template else []),
            ("hostname", self.hostname.encode()),
            ("machine-id", self.machine_id.encode()),
            ("boot-id", str(self.boot_id).encode()),
            *(("env", f"{key}={value}".encode()) for key, value in self.env.items()),
        ]


def check_env(env: Mapping[str, str]) -> dict[str, str]:
    """`env` itself, once every name and value can be an environment variable. `ConfigError` otherwise."""
    for key, value in env.items():
        if not isinstance(key, str) or not key or "=" in key or "\0" in key:
            raise ConfigError("env", key, f"{key!r} is not the name of an environment variable")
        if not isinstance(value, str) or "\0" in value:
            raise ConfigError("env", value, f"the value of {key} must be text without NUL")
    return dict(env)
