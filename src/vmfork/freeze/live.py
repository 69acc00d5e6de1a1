"""A running machine is copied as it is at one moment, and runs on."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError, HostError, MachineEnded
from vmfork.host import facts
from vmfork.host.copier import copy_machine
from vmfork.host.mapped import MappedMemory
from vmfork.machine.use import measure_memory
from vmfork.machine.ways import find_inherited
from vmfork.units import MIB, format_mib

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmfork.host.copier import Copied, Watching
    from vmfork.machine.facts import Make
    from vmfork.machine.running import Running

# Beside what is copied: the state of the devices, page tables, and what changes meanwhile.
_HEADROOM_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class Moment:
    """Owner of the files that a machine's memory at one moment is read from, lowest first, and of its devices' state.

    They have no name, and live as long as anybody has them open or mapped.
    """

    layers: tuple[int, ...]
    state_fd: int
    copied: Copied

    @contextmanager
    def open_state(self) -> Iterator[int]:
        """The state from its start, for one machine: a position in a file is shared by all who have the descriptor."""
        fd = os.open(f"/proc/self/fd/{self.state_fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def check_copyable(running: Running) -> Make:
    """How the machine was made. Raises `ConfigError` when such a machine cannot be copied while it runs."""
    running.check_open()
    if running.facts.make is None:
        reason = "it was started by an older vmfork, which did not record how"
        raise ConfigError("vm", running.id, f"VM {running.id} cannot be copied: {reason}", hint="start it again")
    if running.hardware.added_mib:
        reason = "memory was added to it while it ran"
        hint = "give its template the memory (VMConfig.memory_mib), or shrink it first (VM.resize)"
        raise ConfigError("vm", running.id, f"VM {running.id} cannot be copied: {reason}", hint=hint)
    return running.facts.make


def find_unset(running: Running) -> Mapping[str, str]:
    """Variables that lead programs of the machine out of it, and are nothing for what is made from it."""
    make = running.facts.make
    return find_inherited(running) if make is not None and make.keeps_programs else {}


@contextmanager
def new_files() -> Iterator[tuple[int, int]]:
    """Two files without a name: for memory, and for the devices' state."""
    with ExitStack() as always:
        memory_fd = os.memfd_create("vmfork-memory", os.MFD_CLOEXEC)
        always.callback(os.close, memory_fd)
        state_fd = os.memfd_create("vmfork-state", os.MFD_CLOEXEC)
        always.callback(os.close, state_fd)
        yield memory_fd, state_fd


@contextmanager
def open_for_writing(fd: int) -> Iterator[int]:
    """The same file, for writing alone: QEMU takes a descriptor only for what it is open for, and nothing more."""
    writes = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        yield writes
    finally:
        os.close(writes)


@contextmanager
def _end_told(running: Running) -> Iterator[None]:
    """A copy that failed because the machine has ended is told as that: it does not run on."""
    try:
        yield
    except (HostError, OSError) as error:
        if not running.machine.identity.is_alive():
            raise MachineEnded(running.machine.exit_code) from error
        raise


async def copy_into(running: Running, *, memory_fd: int, state_fd: int, whole: bool) -> tuple[Copied, tuple[int, ...]]:
    """The machine is in both files as it was at one moment, and runs on.

    With `whole` the file has all of its memory. Otherwise it may hold what lies over another file; then that is given,
    for the caller to close. `state_fd` is open for writing alone. Raises `HostError` when memory is short, before
    anything was done, with the arithmetic, and when it could not be copied; `MachineEnded` when it has ended.
    """
    check_copyable(running)
    hardware, machine = running.hardware, running.machine
    size_bytes = hardware.memory_mib * MIB
    with _end_told(running), await MappedMemory.ask(machine.keeper) as mapped:
        _check_room(running, mapped, whole=whole)
        below, upper = mapped.held[:1], mapped.held[1:]
        os.ftruncate(memory_fd, size_bytes)
        async with machine.lend_monitor() as monitor:
            copied = await copy_machine(
                monitor,
                mapped,
                target_fd=memory_fd,
                state_fd=state_fd,
                size_bytes=size_bytes,
                watching=_watching(running, has_file=bool(below)),
                layers=(*below, *upper) if whole else upper,
            )
        return copied, tuple(os.dup(fd) for fd in below if not whole)


async def take_moment(running: Running, opened: ExitStack) -> Moment:
    """The machine as it was at one moment; it runs on. What is in it is open until `opened` is closed.

    Raises what `copy_into` raises.
    """
    memory_fd, state_fd = opened.enter_context(new_files())
    with open_for_writing(state_fd) as writes:
        copied, below = await copy_into(running, memory_fd=memory_fd, state_fd=writes, whole=False)
    for fd in below:
        opened.callback(os.close, fd)
    return Moment(layers=(*below, memory_fd), state_fd=state_fd, copied=copied)


def _watching(running: Running, *, has_file: bool) -> Watching:
    """Under TCG all pages are watched: to ask which are its own takes 1 ms of the pause for 33 MiB. Under KVM each page
    that is watched costs the guest a fault, also where it only reads."""
    if not has_file:
        return "anonymous"
    return "own" if running.hardware.accel == "kvm" else "all"


def _check_room(running: Running, mapped: MappedMemory, *, whole: bool) -> None:
    """Raises `HostError`, with the arithmetic, when what is to be copied has no room."""
    own = measure_memory(running.facts, running.machine.identity.pid).guest_private
    held = [os.fstat(fd).st_blocks * 512 for fd in (mapped.held if whole else mapped.held[1:])]
    need, available = own + sum(held) + _HEADROOM_BYTES, facts.available_memory_bytes()
    if need > available:
        raise HostError(
            f"not enough memory: copying VM {running.id} needs {format_mib(need // MIB)} ({own // MIB} MiB of its own,"
            f" {sum(held) // MIB} MiB that it shares), {format_mib(available // MIB)} can be had",
            hint="stop something else, or raise the memory limit of the container or service",
        )
