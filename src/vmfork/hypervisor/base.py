"""What a hypervisor is asked for, and what it gives: frozen descriptions in, one owner of a running machine out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vmfork.config.isolation import IsolationLevel  # noqa: TC001 - a record's types are looked up when it is read

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from vmfork.config.isolation import UserRange
    from vmfork.config.values import CardChoice
    from vmfork.host.delegation import Parent
    from vmfork.host.passt import Outlet
    from vmfork.host.process import ProcessIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What the guest sees. Device state fits only a machine with exactly the same.

    `machine` is a versioned type (`pc-q35-7.2`), so that a newer emulator still builds the same one. `accel` is the
    decided one, `kvm` or `tcg`. `cpus` are online; the others up to `max_cpus` are parked. `memory_mib` can grow up to
    `max_memory_mib`; of it, `added_mib` was plugged in piece by piece while the machine ran. Sizes in MiB. `nic`: it
    has a network card. `disk`: it has a disk that it only reads, which its root is on. `scratch_mib` is the size of a
    disk that it writes to, 0 where it has none.
    """

    machine: str
    accel: str
    cpu_model: str
    cpus: int
    memory_mib: int
    vmgenid: bool = True
    max_cpus: int = 0
    max_memory_mib: int = 0
    added_mib: tuple[int, ...] = ()
    nic: bool = False
    disk: bool = False
    scratch_mib: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_cpus", max(self.max_cpus, self.cpus))
        object.__setattr__(self, "max_memory_mib", max(self.max_memory_mib, self.memory_mib))

    @property
    def base_memory_mib(self) -> int:
        """What it had when its kernel booted."""
        return self.memory_mib - sum(self.added_mib)


@dataclass(frozen=True, slots=True)
class AnonymousRAM:
    """Guest RAM that is the machine's own and goes with it."""


@dataclass(frozen=True, slots=True)
class SharedRAM:
    """Guest RAM that is written straight into the file open as `fd`: how a template is made."""

    fd: int


@dataclass(frozen=True, slots=True)
class ForkedRAM:
    """Guest RAM that is read from the file open as `fd`, and copied page by page where the guest writes.

    What the file `upper_fd` has lies over it, at the same places, and is copied likewise. What had been added to the
    machine before it was frozen is read from the last file alone, where it lies behind the rest.
    """

    fd: int
    upper_fd: int | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """The files, lowest first."""
        return (self.fd,) if self.upper_fd is None else (self.fd, self.upper_fd)


RAM = AnonymousRAM | SharedRAM | ForkedRAM


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """Start from a kernel."""

    kernel: Path
    initramfs: Path
    command_line: str


@dataclass(frozen=True, slots=True)
class Restore:
    """Start from device state, read from the start of the file open as `state_fd`."""

    state_fd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """How far a machine's hypervisor is kept from its host: a level by name, made of the `parts` that apply.

    | part | keeps it by |
    | --- | --- |
    | filter | a seccomp filter, no capability, limits, an empty environment, files that were opened for it |
    | namespaces | a root with nothing in it but its program, and an empty network |
    | landlock | in place of that root, where there are no namespaces: no other file can be opened |
    | user | a user id that nothing else on the host has |
    | memory, cpu, processes | a control group that limits it: no level asks for one |

    `missing` says of each other part why it does not apply. docs/concepts/isolation.md has the levels.
    """

    level: IsolationLevel = "none"
    parts: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


NOT_ISOLATED = Isolation()


@dataclass(frozen=True, slots=True, kw_only=True)
class Containment:
    """What is done for that at the start of one machine.

    `reads` are the paths of the hypervisor's own files. The namespaces are those of a user namespace where they are
    `mapped`. `users` are whom it may become. Control groups of its own are made below `groups`.
    With `outward` it has the host's network, and may connect over IP.
    """

    isolation: Isolation = NOT_ISOLATED
    reads: tuple[str, ...] = ()
    mapped: bool = False
    users: UserRange | None = None
    groups: tuple[Parent, ...] = ()
    outward: bool = False

    def has(self, part: str) -> bool:
        """Whether that part of an isolation is in force."""
        return part in self.isolation.parts


NOT_CONTAINED = Containment()


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A network card's Ethernet address (`52:54:00:12:34:56`), which a restored guest has its own of, and its backend.

    That is nothing (`none`), the hypervisor's own user network, which lets the guest out only where it is `open`, or a
    process beside it (`passt`), of which `outlet` tells.
    """

    mac: str
    backend: CardChoice = "none"
    outlet: Outlet | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scratch:
    """A disk that a machine writes to, of two files. `base_fd` has what was on it when the machine began, for all that
    began so, and nobody writes it; it is of that `base_format`, of QEMU's. What it writes is in `own_fd`, qcow2."""

    base_fd: int
    base_format: str
    own_fd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Everything that starts one machine. `folder` is private to it and holds its sockets and logs.

    `lock_fd` is held open until the machine has ended, under any owner. `groups` are the folders of its control groups.
    `link` is that of its card, `disk_fd` the file of its root's disk, and `scratch` the disk that it writes to, where
    its hardware has one.
    """

    name: str
    folder: Path
    hardware: Hardware
    ram: RAM
    start: Boot | Restore
    generation_id: str
    lock_fd: int | None = None
    containment: Containment = NOT_CONTAINED
    groups: tuple[str, ...] = ()
    link: Link | None = None
    disk_fd: int | None = None
    scratch: Scratch | None = None


# kernel/reboot.c: "reboot: System halted", and "reboot: Power off not available: System halted instead".
HALTED = "System halted"
# The hint where an emulator does not answer.
HANGS = "its emulator was stopped, or the host is too busy: take another machine"


class Watched(Protocol):
    """A machine as seen from outside: which process it is, whether and how it ended, what it wrote. Asks it nothing."""

    @property
    def identity(self) -> ProcessIdentity: ...

    @property
    def argv(self) -> tuple[str, ...]: ...

    @property
    def has_ended(self) -> bool: ...

    @property
    def exit_code(self) -> int | None:
        """`None` while it runs, and for a machine that was taken over from another process."""

    def on_exit(self, callback: Callable[[int | None], None], /) -> None: ...

    def on_halt(self, callback: Callable[[], None], /) -> None:
        """`callback` is called when the guest says that it halts; it may only have printed the words."""

    async def wait(self) -> int | None: ...

    def log_tail(self) -> str: ...

    def console_tail(self) -> str: ...

    @property
    def console_bytes(self) -> int:
        """How many bytes came from the guest's console since we own the machine."""


class Controlled(Protocol):
    """A machine as its hypervisor controls it. Calls do not involve the guest, and have no time limit of their own."""

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def check(self) -> None:
        """The hypervisor answered."""

    async def is_running(self) -> bool:
        """The guest's CPUs are not stopped by the hypervisor."""

    async def wait_stopped(self) -> str:
        """The guest stands still, and the hypervisor's word for why."""

    async def save_state(self, path: Path, /) -> None:
        """Device state without RAM is in `path`. The machine must be paused, and stays so."""

    async def copy_scratch(self, fd: int, /) -> None:
        """What is on the disk that it writes to is in the file `fd`, an empty image open for both. It stands still."""

    def copying_scratch(self, fd: int, /) -> AbstractAsyncContextManager[str]:
        """The same after the block, of a machine that runs: of the moment at which somebody says to its monitor, while
        it stands still, what the block is given."""

    async def locate_memory(self, address: int, /) -> int:
        """Where the hypervisor's process has what the guest has at `address`."""

    def lend_monitor(self) -> AbstractAsyncContextManager[socket.socket]:
        """The hypervisor's own monitor, for a program that copies the machine. Calls wait until it is back."""

    @property
    def keeper(self) -> Path:
        """Where the keeper of the machine listens."""


class Wired(Protocol):
    """A machine whose card may lead out by a process beside it (`Link.outlet`)."""

    async def wait_outlet(self, *, timeout_s: float) -> None:
        """That process, if there is one, has come up. Raises `HostError` when it has ended, with what it said."""

    def on_outlet_lost(self, callback: Callable[[], None], /) -> None:
        """`callback` is called when it has ended before the machine."""

    async def set_carrier(self, *, up: bool) -> None:
        """The guest sees a card with a carrier, or without one."""

    @property
    def outlet(self) -> ProcessIdentity | None:
        """Which process that is."""


@dataclass(frozen=True, slots=True)
class MemoryPiece:
    """Memory that was plugged in, under the name that the hypervisor knows it by.

    `address`: where the guest has it. `from_file`: the machine is a fork of one that had it, and reads it from a file;
    otherwise it came while this machine ran.
    """

    name: str
    size_mib: int
    address: int = 0
    from_file: bool = False


class Growable(Protocol):
    """A running machine as it takes on memory and gives it back."""

    async def list_memory(self) -> Sequence[MemoryPiece]:
        """What was plugged in and is there, in the order in which it came."""

    async def add_memory(self, name: str, size_mib: int, /) -> None:
        """The guest has taken a new piece of memory. Raises `HostError` when it, or the hypervisor, refused."""

    async def remove_memory(self, name: str, /) -> None:
        """No piece of memory has this name. Raises `HostError` when the guest does not give it back."""


class Machine(Watched, Controlled, Growable, Wired, Protocol):
    """Owner of one running hypervisor process.

    Its owner may speak to the agent through a socket of `connect_agent()`, one at a time.
    """

    def connect_agent(self) -> socket.socket: ...

    async def detach(self, line: socket.socket, *, token: bytes, ttl_s: float) -> None:
        """The machine has no owner until a process that knows `token` takes it over, within `ttl_s` s (0: ever)."""

    def kill(self) -> None:
        """The process was told to end at once; `on_exit` tells when it has."""

    async def aclose(self) -> None:
        """The process is gone and reaped; its sockets and descriptors are released."""

    def end(self) -> None:
        """As `aclose`, at once and without an event loop: for when the loop it belongs to is gone."""
