"""The ports of the host that lead into a machine, and the notes of them in its folder.

```
VMS/ID/port-NNNNNNNN.json     one that some process forwards: gone when it ends in order
```
Any client of a machine may forward. A note is for people. Whoever reads them leaves out those of processes that have
ended.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from vmfork.host.folders import find_content, write_whole
from vmfork.host.process import ProcessIdentity
from vmfork.network.forward import start_forward
from vmfork.records import find_value, write_record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vmfork.machine.running import Running
    from vmfork.network.address import HostAddress
    from vmfork.network.forward import Forward


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardedPort:
    """A port of a guest, where it is to be had on the host, and the process that forwards it."""

    guest_port: int
    address: str
    process: ProcessIdentity


async def forward(running: Running, guest_port: int, address: HostAddress, *, timeout_s: float) -> Forward:
    """Whoever connects to `address` is connected to the port of the guest, and a note says so.

    Raises `HostError`, and `GuestError` when the machine's agent is too old.
    """
    agent = running.agent
    await agent.check_ports(timeout_s=timeout_s)
    port = start_forward(agent, guest_port, address, note=partial(_note, running.folder.path, guest_port))
    running.ports.add(port)
    return port


def _note(folder: Path, guest_port: int, address: str) -> Callable[[], None]:
    """The note is there. Gives what removes it."""
    path = folder / f"port-{secrets.token_hex(4)}.json"
    with suppress(OSError):  # a port works without its note
        process = ProcessIdentity.of(os.getpid())
        assert process is not None
        note = ForwardedPort(guest_port=guest_port, address=address, process=process)
        write_whole(path, write_record(note))

    def remove() -> None:
        with suppress(OSError):
            path.unlink(missing_ok=True)

    return remove


def list_ports(folder: Path) -> Sequence[ForwardedPort]:
    """What is forwarded into the machine of that folder now, by the guest's port."""
    found = (find_value(ForwardedPort, find_content(path)) for path in folder.glob("port-*.json"))
    alive = (port for port in found if port is not None and port.process.is_alive())
    return sorted(alive, key=lambda port: (port.guest_port, port.address))
