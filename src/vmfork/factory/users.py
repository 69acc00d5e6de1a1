"""Who uses a template now: machines that are forks of it, and the server that keeps more ready."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.machine.folder import list_records

if TYPE_CHECKING:
    from vmfork.config import Places
    from vmfork.machine.folder import VMRecord
    from vmfork.rpc.status import ServerStatus


@dataclass(frozen=True, slots=True)
class Users:
    """`forks` run; those that `server` (its process, 0 where none) holds are among them."""

    forks: tuple[VMRecord, ...] = ()
    server: int = 0

    def describe(self) -> list[str]:
        """What becomes of each, a line of text."""
        held = [fork for fork in self.forks if fork.owner_pid == self.server != 0]
        told = [f"fork {fork.id} of it runs on ({_owner(fork)})" for fork in self.forks if fork not in held]
        if self.server:
            ready = f"; {len(held)} that it keeps ready are ended" if held else ""
            told.append(f"the VM cache server, process {self.server}, makes it again at its next start{ready}")
        return told


def find_users(name: str, *, places: Places, served: ServerStatus | None) -> Users:
    """The users of the template `name`, `served` being what the server of these places says of itself."""
    forks = tuple(record for record in list_records(places.vms) if record.template == name)
    return Users(forks, served.pid if served is not None and served.template == name else 0)


def _owner(fork: VMRecord) -> str:
    return f"process {fork.owner_pid}" if fork.owner_pid else "detached"
