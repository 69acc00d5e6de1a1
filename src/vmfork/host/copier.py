"""A program that copies a machine while it runs: started for one copy, and gone after it (copier/README.md)."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, cast

from vmfork.errors import DeadlineExceeded, HostError
from vmfork.host.process import spawn, watch
from vmfork.host.shipped import find_shipped
from vmfork.host.wait import wait_readable

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from pathlib import Path

    from vmfork.host.mapped import MappedMemory
    from vmfork.host.process import WatchedProcess

# What it does in the pause has limits of its own, 30 s in all. Before that it copies, at 1 GB/s and more.
_LIMIT_S = 120.0
_LINE = 4096
# Its second process lets the machine run on once the first was killed.
_END_LIMIT_S = 10.0

Watching = Literal["all", "own"]
Way = Literal["watched", "marked", "twice"]


@dataclass(frozen=True, slots=True)
class Span:
    """So many bytes from a place on, in a file or in a guest's memory. Both are whole pages."""

    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.start}+{self.size}"


@dataclass(frozen=True, slots=True)
class Layer:
    """What the open file `fd` holds in `span`."""

    fd: int
    span: Span

    def __str__(self) -> str:
        return f"{self.fd}:{self.span}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a copy took: the pause in seconds, how it splits, and how many pages were copied in it.

    `way`: the kernel noted what the machine wrote, as it does from 6.7 on (`watched`), or marked it (`marked`), which
    takes longer to be found; or everything was copied `twice`, the second time in the pause.
    """

    way: Way
    pause_s: float
    stop_s: float
    save_s: float
    go_on_s: float
    pages: int


@cache
def find_copier() -> Path:
    """The copier's binary as the package ships it. Raises `HostError` when it was not built."""
    return find_shipped(f"copier-{os.uname().machine}", what="the program that copies running machines")


async def copy_machine(
    monitor: socket.socket,
    mapped: MappedMemory,
    *,
    target_fd: int,
    state_fd: int,
    pieces: Sequence[Span],
    watching: Watching,
    marks_fd: int = -1,
    layers: Sequence[Layer] = (),
    beside: str = "",
) -> Copied:
    """The machine's memory, of one moment, is in the file `target_fd`, and the state of its devices in `state_fd`.

    It runs on, or stands still where it did. `state_fd` is open for writing alone. `pieces` are the memory as the guest
    sees it; in the file they lie one behind the other. `layers` are copied first, to the same places, lowest first;
    over them comes what the machine has for itself. Of what it has, `watching` says what the kernel keeps from being
    written unnoticed: all that is there, or only its own, which is for KVM. Where the kernel cannot do that, it may
    mark what is written: `marks_fd` is /proc/PID/clear_refs, open for writing, or -1. `beside` is said to the monitor
    once the machine stands still: what begins there is of the same moment.

    Raises `HostError` when it could not be copied, and `DeadlineExceeded`. After that, and on cancel, the machine runs
    on, too.
    """
    reads, writes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    with ExitStack() as always:
        always.callback(os.close, reads)
        with ExitStack() as until_started:
            until_started.callback(os.close, writes)
            numbers = (
                monitor.fileno(),
                mapped.memory_fd,
                mapped.pagemap_fd,
                mapped.faults_fd,
                marks_fd,
                target_fd,
                state_fd,
            )
            memory = ",".join(map(str, pieces))
            command = [str(find_copier()), *map(str, numbers), memory, watching, beside, *map(str, layers)]
            os.set_blocking(writes, True)
            passed = [fd for fd in (*numbers, *(layer.fd for layer in layers)) if fd >= 0]
            child = spawn(command, log_fd=writes, pass_fds=passed, env={})
        process = watch(child, command)
        try:
            async with asyncio.timeout(_LIMIT_S):
                said = await _read_line(reads)
        except BaseException as error:
            await asyncio.shield(_end(process, reads))
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("copying the running machine", _LIMIT_S) from None
            raise
        if not said.startswith("copied "):
            await _end(process, reads)
            raise HostError(_explain(said), hint="the machine runs on as it was")
    process.let_end()  # it watches no more within some 50 ms, for which nobody need wait
    return _parse(said)


async def _read_line(fd: int) -> str:
    """A line without its end, or what there was before the end of all."""
    data = b""
    while b"\n" not in data and len(data) < _LINE:
        await wait_readable(fd)
        with suppress(BlockingIOError):
            piece = os.read(fd, _LINE)
            if not piece:
                break
            data += piece
    return data.partition(b"\n")[0].decode(errors="replace")


async def _end(process: WatchedProcess, reads: int) -> None:
    """The copier is gone, and so is its second process, which has let the machine run on."""
    await process.aclose()
    with suppress(TimeoutError):
        async with asyncio.timeout(_END_LIMIT_S):
            while await _read_line(reads):
                pass


def _explain(said: str) -> str:
    reason = said.removeprefix("failed ") or "the program that copies it has ended"
    return f"the running machine could not be copied: {reason}"


def _parse(said: str) -> Copied:
    _, way, *pairs = said.split()
    told = {name: int(number) for name, number in zip(pairs[::2], pairs[1::2], strict=True)}
    return Copied(
        way=cast("Way", way),
        pause_s=told["pause_us"] / 1e6,
        stop_s=told["stop_us"] / 1e6,
        save_s=told["save_us"] / 1e6,
        go_on_s=told["go_on_us"] / 1e6,
        pages=told["pages"],
    )
