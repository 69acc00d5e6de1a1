"""A running machine is copied as it is at one moment, and runs on."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError, HostError, MachineEnded, VMForkError
from vmfork.host import facts
from vmfork.host.copier import Layer, Span, copy_machine
from vmfork.host.lock import locked_folder
from vmfork.host.mapped import MappedMemory, open_marks
from vmfork.host.memory import read_private
from vmfork.machine.ending import has_ended
from vmfork.machine.scratch import opened_image
from vmfork.machine.use import measure_memory
from vmfork.machine.ways import find_inherited
from vmfork.units import MIB, format_mib

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from vmfork.host.copier import Copied, Watching
    from vmfork.hypervisor.base import Machine
    from vmfork.machine.facts import Make
    from vmfork.machine.running import Running

_ENDED = "take another machine, or roll it back to a checkpoint of before"
# QEMU's main loop answers within milliseconds.
_ANSWER_LIMIT_S = 2.0
# A disk is copied at some 500 MB/s, and others may be before us.
_TURN_LIMIT_S = 300.0
# Beside what is copied: the state of the devices, page tables, and what changes meanwhile.
_HEADROOM_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class Moment:
    """Owner of the files that a machine's memory at one moment is read from, lowest first, and of its devices' state.

    They have no name, and live as long as anybody has them open or mapped. `scratch_fd`: what was on the disk that it
    writes to, where it has one.
    """

    layers: tuple[int, ...]
    state_fd: int
    copied: Copied
    scratch_fd: int | None = None

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory in the last of its layers, which is its own; those below are others', too."""
        return os.fstat(self.layers[-1]).st_blocks * 512

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
    return running.facts.make


def check_asking(make: Make | None) -> None:
    """Raises `ConfigError` when programs of a machine that was made so cannot ask for forks of it."""
    if make is None or not make.answers_programs:
        reason = "the agent in this machine cannot ask for it"
        hint = "build the image and its templates again with this vmfork"
        raise ConfigError("allow_guest_fork", True, reason, hint=hint)


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


@asynccontextmanager
async def end_told(running: Running) -> AsyncIterator[None]:
    """A copy that failed because the machine has ended is told as that: it does not run on."""
    try:
        yield
    except (VMForkError, OSError) as error:
        if await _is_lost(running.machine):
            raise MachineEnded(running.machine.exit_code, hint=_ENDED) from error
        raise


async def _is_lost(machine: Machine) -> bool:
    """Whether it has ended, or is ending: it answers no more, and soon is no process."""
    with suppress(VMForkError, OSError, TimeoutError):
        async with asyncio.timeout(_ANSWER_LIMIT_S):
            await machine.check()
            return False
    return await has_ended(machine)


@contextmanager
def new_scratch(running: Running) -> Iterator[int | None]:
    """A file for what is on the disk that the machine writes to, which no path leads to; `None` where it has none."""
    size_mib = running.hardware.scratch_mib
    if not size_mib:
        yield None
        return
    with opened_image(running.folder.places.disks, size_mib) as fd:
        yield fd


@asynccontextmanager
async def _copying_scratch(running: Running, fd: int | None) -> AsyncIterator[str]:
    """Clients of one machine take turns: QEMU copies a disk once at a time, and who begins drops what another began.

    What the block is given is said to QEMU once the machine stands still. Raises `StoreBusy`.
    """
    if fd is None:
        yield ""
        return
    async with locked_folder(running.folder.path, wait_s=_TURN_LIMIT_S), running.machine.copying_scratch(fd) as begin:
        yield begin


async def copy_into(
    running: Running, *, memory_fd: int, state_fd: int, whole: bool, scratch_fd: int | None
) -> tuple[Copied, tuple[int, ...]]:
    """The machine is in these files as it was at one moment, and runs on.

    With `whole` the file has all of its memory. Otherwise it may hold what lies over another file; then that is given,
    for the caller to close. `state_fd` is open for writing alone. `scratch_fd` takes what is on the disk that it writes
    to, where it has one; that is copied after the moment, while it runs.

    Raises `HostError` when memory is short, before anything was done, with the arithmetic, and when it could not be
    copied; `MachineEnded` when it has ended.
    """
    check_copyable(running)
    machine = running.machine
    async with running.resizing, end_told(running):
        with await MappedMemory.ask(machine.keeper) as mapped:
            memory = await find_memory(running)
            layers = memory.list_layers(mapped.held, whole=whole)
            _check_room(running, layers)
            os.ftruncate(memory_fd, memory.size_bytes)
            with open_marks(machine.identity) as marks_fd:
                async with _copying_scratch(running, scratch_fd) as begin, machine.lend_monitor() as monitor:
                    copied = await copy_machine(
                        monitor,
                        mapped,
                        target_fd=memory_fd,
                        state_fd=state_fd,
                        pieces=memory.pieces,
                        watching=_watching(running, has_file=bool(mapped.held)),
                        marks_fd=marks_fd,
                        layers=layers,
                        beside=begin,
                    )
            return copied, tuple(os.dup(fd) for fd in mapped.held[:1] if not whole)


@dataclass(frozen=True, slots=True)
class Memory:
    """A machine's memory as its guest sees it: what it was booted with, and what was added.

    The first `of_files_bytes` of it are read from files, at the same places.
    """

    pieces: tuple[Span, ...]
    of_files_bytes: int

    @property
    def size_bytes(self) -> int:
        return sum(piece.size for piece in self.pieces)

    def list_layers(self, held: Sequence[int], *, whole: bool) -> list[Layer]:
        """What a copy begins with, of the files `held`, lowest first: `whole`, or for what lies over the lowest.

        What was added is read from the last file alone, of a machine as of its copy. So what another machine had there
        that has less by now shows nowhere.
        """
        if not held:
            return []
        booted = self.pieces[0].size
        lower, last = held[:-1], held[-1]
        start = 0 if whole or lower else booted
        layers = [Layer(fd, Span(0, booted)) for fd in lower if whole]
        return (
            [*layers, Layer(last, Span(start, self.of_files_bytes - start))] if start < self.of_files_bytes else layers
        )


async def find_memory(running: Running) -> Memory:
    """The memory of the machine. Raises `HostError` when QEMU has given it another than we know of."""
    hardware = running.hardware
    added = await running.machine.list_memory() if hardware.added_mib else []
    if tuple(piece.size_mib for piece in added) != hardware.added_mib:
        raise HostError(
            f"VM {running.id} cannot be copied: its memory is not what it was given",
            hint="the machine runs on as it was",
        )
    booted = hardware.base_memory_mib * MIB
    return Memory(
        (Span(0, booted), *(Span(piece.address, piece.size_mib * MIB) for piece in added)),
        booted + sum(piece.size_mib * MIB for piece in added if piece.from_file),
    )


async def take_moment(running: Running, opened: ExitStack) -> Moment:
    """The machine as it was at one moment; it runs on. What is in it is open until `opened` is closed.

    Raises what `copy_into` raises.
    """
    memory_fd, state_fd = opened.enter_context(new_files())
    scratch_fd = opened.enter_context(new_scratch(running))
    with open_for_writing(state_fd) as writes:
        copied, below = await copy_into(
            running, memory_fd=memory_fd, state_fd=writes, whole=False, scratch_fd=scratch_fd
        )
    for fd in below:
        opened.callback(os.close, fd)
    return Moment(layers=(*below, memory_fd), state_fd=state_fd, copied=copied, scratch_fd=scratch_fd)


def _watching(running: Running, *, has_file: bool) -> Watching:
    """Under TCG all pages are watched: to ask which are its own takes 1 ms of the pause for 33 MiB. Under KVM each page
    that is watched costs the guest a fault, also where it only reads."""
    return "own" if has_file and running.hardware.accel == "kvm" else "all"


def _check_room(running: Running, layers: Sequence[Layer]) -> None:
    """Raises `HostError`, with the arithmetic, when what is to be copied has no room."""
    pid = running.machine.identity.pid
    held = sum(min(os.fstat(layer.fd).st_blocks * 512, layer.span.size) for layer in layers)
    available = facts.available_memory_bytes()
    # With all that the emulator has for itself, which is told at once. How much of it is the guest's takes a walk over
    # its page table, which holds up our event loop and, at times, the machine.
    if read_private(pid) + held + _HEADROOM_BYTES <= available:
        return
    own = measure_memory(running.facts, pid).guest_private
    need = own + held + _HEADROOM_BYTES
    if need > available:
        raise HostError(
            f"not enough memory: copying VM {running.id} needs {format_mib(need // MIB)} ({own // MIB} MiB of its own,"
            f" {held // MIB} MiB that it shares), {format_mib(available // MIB)} can be had",
            hint="stop something else, or raise the memory limit of the container or service",
        )
