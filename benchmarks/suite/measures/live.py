"""Forks of a running machine: its pause as the host sees it, and what they cost beside forks of a template."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.suite.figures import Plot, Row, Samples, Target, milliseconds
from benchmarks.suite.measure import Measure
from vmfork.api.vm import VM
from vmfork.freeze.live import take_moment
from vmfork.host.mapped import MappedMemory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from benchmarks.suite.context import Context
    from vmfork.api.checkpoint import Checkpoint
    from vmfork.api.template import Template
    from vmfork.host.copier import Copied
    from vmfork.machine.running import Running

_MEMORY_MIB, _LARGE_MIB = 512, 2048
_DIRTIED_MIB = 32
_FORKS = 8
_FORK_MIB = 100
_PER_MIB = 2**20
# Around the copy: what a machine does by itself in that time is in the same measure without one.
_MARGIN_S = 0.1
_PING_EVERY_S = 0.001
_SETTLE_S = 1.0

# It counts in a page that the host finds, and rewrites 32 MiB of its memory, 50 MiB a second.
_WRITER = f"""
import ctypes, mmap, os, struct, time
page = mmap.mmap(-1, 4096)
count = ctypes.c_uint64.from_buffer(page)
written = ctypes.c_uint64.from_buffer(page, 8)
count.value = 1
with open("/proc/self/pagemap", "rb") as pagemap:
    pagemap.seek(ctypes.addressof(count) // 4096 * 8)
    frame = struct.unpack("Q", pagemap.read(8))[0] & (1 << 55) - 1
data, piece, place = bytearray({_DIRTIED_MIB} << 20), os.urandom(1 << 16), 0
with open("/root/frame", "w") as told:
    print(frame, file=told)
due = time.monotonic()
while True:
    count.value += 1
    if time.monotonic() >= due:
        data[place : place + len(piece)] = piece
        place = (place + len(piece)) % len(data)
        written.value += len(piece)
        due += len(piece) / (50 << 20)
"""
_START_WRITER = """
mkfifo /root/frame
setsid python3 /root/writer.py </dev/null >/dev/null 2>&1 &
cat /root/frame
"""

_BOUNDS = (
    "The floor is what QEMU takes to stop, save its devices and go on. What is beyond it are the threads of QEMU and "
    "of the copier, which wait for a core, and faults of the guest on pages that are watched."
)
_FORK_BOUNDS = (
    "Before the fork is started its parent's own pages are copied: a few hundredths of a second for 32 MiB. Each piece "
    "of them is a mapping of its own."
)
_BACK_BOUNDS = (
    "It is a fork of a copy that is there already, and the end of what the machine is by then. That comes first, since "
    "there are never two of it."
)
_MEMORY_BOUNDS = (
    "It grows with what the parent had written: the file with its pages is there once, beside what each fork writes. "
    "Forks of a template have nothing that stands for it."
)


@dataclass(frozen=True, slots=True)
class _Parent:
    """A machine that runs, with 32 MiB of its own; where it writes, `counter` is where the host finds its count."""

    vm: VM
    running: Running
    counter: int = 0

    @classmethod
    async def make(cls, context: Context, template: Template, stack: AsyncExitStack, *, writes: bool) -> _Parent:
        adopted = await context.adopted_fork(template)
        stack.push_async_callback(adopted.running.aclose)
        vm = VM(*adopted)
        await vm.shell(f"head -c {_DIRTIED_MIB}M /dev/urandom > /root/data", check=True)
        if not writes:
            return cls(vm, adopted.running)
        await vm.write_file("/root/writer.py", _WRITER)
        told = await vm.shell(_START_WRITER, check=True, timeout_s=60)
        return cls(vm, adopted.running, await adopted.running.machine.locate_memory(int(told.stdout) * 4096))

    async def copy(self) -> Copied:
        with ExitStack() as opened:
            return (await take_moment(self.running, opened)).copied

    async def watch(self, seconds: float) -> tuple[float, float, Copied | None]:
        """The longest that it stood still, as the host sees it, and bytes that it wrote a second.

        Either in a copy, or in so many seconds without.
        """
        return await (self._watch_counter(seconds) if self.counter else self._watch_pings(seconds))

    async def _act(self, seconds: float) -> Copied | None:
        await asyncio.sleep(_MARGIN_S)
        copied = None
        if seconds:
            await asyncio.sleep(seconds)
        else:
            copied = await self.copy()
        await asyncio.sleep(_MARGIN_S)
        return copied

    async def _watch_counter(self, seconds: float) -> tuple[float, float, Copied | None]:
        program = Path(__file__).parents[1] / "standstill.py"
        with await MappedMemory.ask(self.running.machine.keeper) as mapped:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", str(program), str(mapped.memory_fd), str(self.counter)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=[mapped.memory_fd],
            )
            try:
                copied = await self._act(seconds)
            finally:
                said, _ = await process.communicate(b"")  # which ends its input, and so the program
        longest, rate = map(float, said.split())
        return longest, rate, copied

    async def _watch_pings(self, seconds: float) -> tuple[float, float, Copied | None]:
        acting = asyncio.create_task(self._act(seconds))
        longest = 0.0
        while not acting.done():
            longest = max(longest, await self.vm.ping())
            await asyncio.sleep(_PING_EVERY_S)
        return longest, 0.0, await acting


async def _pause(parent: _Parent, name: str, samples: Samples) -> dict[str, float]:
    begun = time.perf_counter()
    seen, rate, copied = await parent.watch(0)
    assert copied is not None
    if rate:
        samples.add(f"{name}-rate", rate)
    rest, _, _ = await parent.watch(max(time.perf_counter() - begun - 2 * _MARGIN_S, _MARGIN_S))
    return {
        f"{name}-seen": seen,
        f"{name}-rest": rest,
        f"{name}-pause": copied.pause_s,
        f"{name}-stop": copied.stop_s,
        f"{name}-save": copied.save_s,
        f"{name}-go-on": copied.go_on_s,
    }


async def _pauses(context: Context, samples: Samples) -> None:
    small = await context.template(memory_mib=_MEMORY_MIB)
    large = await context.template(memory_mib=_LARGE_MIB)
    for name, template, writes in (
        ("idle", small, False),
        ("writing", small, True),
        ("large-idle", large, False),
        ("large-writing", large, True),
    ):
        context.report(f"a machine of {template.manifest.memory_mib} MiB, {name}")
        # One at a time: a machine that writes takes a core of those beside it.
        async with AsyncExitStack() as stack:
            parent = await _Parent.make(context, template, stack, writes=writes)

            async def side(parent: _Parent = parent, name: str = name) -> dict[str, float]:
                return await _pause(parent, name, samples)

            await context.interleave(samples, {name: side}, rounds=10)


async def _time_forks(forking: Awaitable[Sequence[VM]]) -> tuple[float, int]:
    """Seconds until all have run a program, and the bytes that they have for themselves a moment later."""
    begun = time.perf_counter()
    async with AsyncExitStack() as stack:
        forks = await forking
        for fork in forks:
            stack.push_async_callback(fork.aclose)
        await asyncio.gather(*(fork.exec(["true"], check=True) for fork in forks))
        took_s = time.perf_counter() - begun
        if len(forks) == 1:
            return took_s, 0
        await asyncio.sleep(_SETTLE_S)
        own = sum(fork.memory().private for fork in forks)
        upper = {inode: await _measure_upper(fork) for fork in forks if (inode := fork.facts.upper_inode)}
        return took_s, own + sum(upper.values())


async def _measure_upper(fork: VM) -> int:
    """Bytes of the file that lies over its template's."""
    with await MappedMemory.ask(fork._running.machine.keeper) as mapped:  # noqa: SLF001 - what no VM tells
        return os.fstat(mapped.held[-1]).st_blocks * 512


async def _time_return(vm: VM, point: Checkpoint) -> dict[str, float]:
    """Seconds until it has gone back, and run a program."""
    begun = time.perf_counter()
    await vm.rollback(point)
    await vm.exec(["true"], check=True)
    return {"back": time.perf_counter() - begun}


async def _forks(context: Context, samples: Samples) -> None:
    template = await context.template(memory_mib=_MEMORY_MIB)
    context.check_memory(2 * _FORKS * _FORK_MIB)
    async with AsyncExitStack() as stack:
        parent = await _Parent.make(context, template, stack, writes=False)

        back = await stack.enter_async_context((await parent.vm.fork(1))[0])
        point = await back.checkpoint()

        async def measure(name: str, forking: Awaitable[Sequence[VM]]) -> dict[str, float]:
            took_s, memory = await _time_forks(forking)
            return {name: took_s, **({f"{name}-memory": memory} if memory else {})}

        await context.interleave(
            samples,
            {
                "one-live": lambda: measure("one-live", parent.vm.fork(1)),
                "one-template": lambda: measure("one-template", template.fork_many(1)),
                "back": lambda: _time_return(back, point),
                "all-live": lambda: measure("all-live", parent.vm.fork(_FORKS)),
                "all-template": lambda: measure("all-template", template.fork_many(_FORKS)),
            },
            rounds=8,
        )


async def run(context: Context) -> Samples:
    samples = Samples()
    await _pauses(context, samples)
    await _forks(context, samples)
    rates = [rate / _PER_MIB for name in ("writing", "large-writing") for rate in samples.sides.get(f"{name}-rate", ())]
    samples.notes += [
        f"the programs that write wrote {min(rates):.0f} to {max(rates):.0f} MiB/s",
        "forkd, on KVM and a patched Firecracker, publishes a pause of 56 ms (v0.4, median of live BRANCH, a source of"
        " 1.5 GiB; Intel i7-12700, 30 GiB, Linux 6.14)",
    ]
    return samples


def _seen(name: str, text: str, at_most: float | None) -> Row:
    """What the host sees of the pause, without what it sees of the same machine that is not copied."""
    return Row(
        key=f"live.pause-{name}",
        text=f"pause of a running machine, {text}, seen from the host",
        kind="difference",
        of=f"{name}-seen",
        to=f"{name}-rest",
        unit="ms",
        scale=1000,
        target=None if at_most is None else Target(at_most=at_most),
        bounds=_BOUNDS if at_most is not None else "",
    )


def _ratio(key: str, text: str, of: str, to: str, at_most: float, bounds: str) -> Row:
    return Row(key=f"live.{key}", text=text, kind="ratio", of=of, to=to, target=Target(at_most=at_most), bounds=bounds)


MEASURE = Measure(
    name="live",
    title="Forks of a running machine",
    unit="s",
    run=run,
    budget_s=55.0,
    rows=(
        _seen("idle", "idle, 512 MiB", 5.0),
        _seen("writing", "50 MiB/s written, 512 MiB", 6.0),
        _seen("large-idle", "idle, 2 GiB", None),
        _seen("large-writing", "50 MiB/s written, 2 GiB", None),
        milliseconds("live.pause", "the pause itself, idle, 512 MiB", of="idle-pause"),
        milliseconds("live.pause-while-writing", "the pause itself, 50 MiB/s written, 512 MiB", of="writing-pause"),
        milliseconds("live.stop", "of it: stop", of="writing-stop"),
        milliseconds("live.save", "of it: save the devices, and beside that copy what was written", of="writing-save"),
        milliseconds("live.go-on", "of it: go on", of="writing-go-on"),
        _ratio("size", "the pause itself, 2 GiB over 512 MiB", "large-idle-pause", "idle-pause", 1.2, _BOUNDS),
        _ratio(
            "one",
            "fork of a running machine to first exec, over one of a template",
            "one-live",
            "one-template",
            1.4,
            _FORK_BOUNDS,
        ),
        _ratio(
            "back",
            "a machine that goes back to a checkpoint, to first exec, over a fork of a template",
            "back",
            "one-template",
            1.2,
            _BACK_BOUNDS,
        ),
        _ratio(
            "all",
            "8 forks of a running machine to first exec, over 8 of a template",
            "all-live",
            "all-template",
            1.25,
            _FORK_BOUNDS,
        ),
        _ratio(
            "memory",
            "memory of 8 forks of a running machine, over 8 of a template",
            "all-live-memory",
            "all-template-memory",
            1.25,
            _MEMORY_BOUNDS,
        ),
    ),
    plots=(
        Plot(
            name="live-pause",
            title="The pause of a running machine that is forked (medians)",
            kind="stack",
            sides={"writing-stop": "stop", "writing-save": "save, copy the rest", "writing-go-on": "go on"},
            y="ms",
            scale=1000,
        ),
    ),
)
