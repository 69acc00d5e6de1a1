"""What one process tells another so that it can take a VM over."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path

from vmfork.adopt.handshake import Adoption
from vmfork.adopt.todo import Thaw
from vmfork.errors import ConfigError
from vmfork.host.keeper import TOKEN_SIZE
from vmfork.host.process import ProcessIdentity
from vmfork.machine.facts import Described, MachineFacts
from vmfork.machine.folder import is_vm_id
from vmfork.machine.timings import Timings
from vmfork.records import VERSION, OtherVersion, read_record, write_record

# Raised with every change of the fields, and of what is said to a keeper.
HANDLE_VERSION = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class VMHandle(Described):
    """One detached VM, good for one attach. Whoever has the handle, and so its `token`, can have the VM.

    `process` is the hypervisor's. `adoption`: what made it a VM of its own; without one it is a base, and `todo` is
    left to do in it. `paused`: it stands still. `deadline_s`: when it ends unless it is taken, by the host's monotonic
    clock, as its keeper and its broker count; 0 is never.
    """

    facts: MachineFacts
    folder: str
    process: ProcessIdentity
    token: str = field(repr=False)
    paused: bool
    timings: Timings
    adoption: Adoption | None = None
    todo: Thaw = field(default_factory=Thaw)
    deadline_s: float = 0.0
    version: int = field(default=HANDLE_VERSION, metadata=VERSION)

    def __post_init__(self) -> None:
        if not is_vm_id(self.id) or len(bytes.fromhex(self.token)) != TOKEN_SIZE:
            raise ValueError("it names no VM")

    @property
    def path(self) -> Path:
        """The VM's folder."""
        return Path(self.folder)

    @property
    def pid(self) -> int:
        """The process id of the hypervisor on the host."""
        return self.process.pid

    def left_s(self) -> float:
        """What is left of its time to live, a second at least; 0 is no limit."""
        return max(1.0, self.deadline_s - time.monotonic()) if self.deadline_s else 0.0

    @property
    def ends_at(self) -> float:
        """When its time to live is over, in seconds since 1970, by the host's clock of now; 0 is never."""
        return time.time() + self.deadline_s - time.monotonic() if self.deadline_s else 0.0

    def to_json(self) -> bytes:
        """The handle as text for another process. Whoever reads it can have the VM."""
        return write_record(self)

    @classmethod
    def from_json(cls, data: bytes) -> VMHandle:
        """The handle that `to_json` made. Raises `ConfigError` for other text, and for another version's handle."""
        try:
            return read_record(cls, data)
        except OtherVersion as error:
            if error.have is None:
                raise _no_handle(data, "it is not the handle of a VM") from error
            raise ConfigError(
                "handle.version",
                error.have,
                f"the handle has version {error.have!r}, this vmfork takes {error.want}",
                hint="use the same vmfork on both sides; vmfork stop ends a machine of any",
            ) from error
        except ValueError as error:
            raise _no_handle(data, f"it is damaged: {error}") from error


def _no_handle(data: bytes, reason: str) -> ConfigError:
    return ConfigError("handle", data[:40], reason)


def new_token() -> str:
    """A token nobody can guess."""
    return secrets.token_hex(TOKEN_SIZE)
