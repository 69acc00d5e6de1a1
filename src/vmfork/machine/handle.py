"""What one process tells another so that it can take a VM over."""

from __future__ import annotations

import json
import re
import secrets
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vmfork.adopt.handshake import Adoption
from vmfork.adopt.identity import ENTROPY_BYTES, Identity
from vmfork.adopt.thaw import Thaw
from vmfork.errors import ConfigError
from vmfork.host.keeper import TOKEN_SIZE
from vmfork.host.process import ProcessIdentity
from vmfork.hypervisor.base import Hardware
from vmfork.machine.timings import Timings

# Raised with every change of the fields, and of what is said to a keeper.
HANDLE_VERSION = 1

_VM_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class VMHandle:
    """One detached VM, good for one attach. `token` is what proves it: who has the handle can have the VM.

    `adoption`: what made it a VM of its own; without one it is a base, and `todo` is left to do in it. `paused`: it
    stands still.
    """

    id: str
    folder: str
    pid: int
    start_ticks: int
    token: str = field(repr=False)
    hardware: Hardware
    image: str
    template: str
    generation: str
    hostname: str
    machine_id: str
    boot_id: str
    reseed: bool
    ram_inode: int
    paused: bool
    timings: Timings
    adoption: Adoption | None = None
    todo: Thaw = field(default_factory=Thaw)
    version: int = HANDLE_VERSION

    @property
    def path(self) -> Path:
        """The VM's folder."""
        return Path(self.folder)

    @property
    def process(self) -> ProcessIdentity:
        """The hypervisor's process."""
        return ProcessIdentity(self.pid, self.start_ticks)

    def identity(self) -> Identity:
        """Who the VM is. What it gets as entropy when it adopts that was never in a handle."""
        return Identity(
            vm_id=self.id,
            generation=uuid.UUID(self.generation),
            hostname=self.hostname,
            machine_id=self.machine_id,
            boot_id=uuid.UUID(self.boot_id),
            template=self.template,
            entropy=secrets.token_bytes(ENTROPY_BYTES) if self.reseed else b"",
        )

    def to_json(self) -> bytes:
        """The handle as text for another process. Whoever reads it can have the VM."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> VMHandle:
        """The handle that `to_json` made. `ConfigError` when it is none, or of another version of vmfork."""
        try:
            found = json.loads(data)
            version = found["version"]
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError("handle", data[:40], "it is not the handle of a VM") from error
        if version != HANDLE_VERSION:
            raise ConfigError(
                "handle.version",
                version,
                f"the handle has version {version!r}, this vmfork takes {HANDLE_VERSION}",
                hint="use the same vmfork on both sides",
            )
        try:
            return _build(found)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError("handle", data[:40], f"it is damaged: {error}") from error


def _build(found: dict[str, Any]) -> VMHandle:
    adoption = found.pop("adoption")
    hardware, todo = found.pop("hardware"), found.pop("todo")
    timings = found.pop("timings")
    handle = VMHandle(
        **found,
        hardware=Hardware(**{**hardware, "added_mib": tuple(hardware["added_mib"])}),
        todo=Thaw(**{key: tuple(value) if isinstance(value, list) else value for key, value in todo.items()}),
        timings=Timings(**timings),
        adoption=None if adoption is None else Adoption(**adoption),
    )
    if not _VM_ID.fullmatch(handle.id) or len(bytes.fromhex(handle.token)) != TOKEN_SIZE:
        raise ValueError("it names no VM")
    return handle


def new_token() -> str:
    """A token nobody can guess."""
    return secrets.token_hex(TOKEN_SIZE)


def is_vm_id(text: str) -> bool:
    """Whether `text` can be the id of a VM."""
    return _VM_ID.fullmatch(text) is not None
