"""Live forks by the hundred, and of much data: what takes minutes, and a quiet machine."""

from __future__ import annotations

import asyncio
import logging
import statistics
from contextlib import AsyncExitStack, ExitStack

import pytest

from vmfork.aio import Template
from vmfork.config import VMConfig
from vmfork.freeze.live import take_moment

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.limit_s(900)]

_log = logging.getLogger(__name__)

# 512 blocks of 64 KiB, each with a checksum. Each is checked before it is written anew, 50 MiB a second at most. After
# each round it says how many there were, how many were bad, and how many seconds that took.
GUARDED = """
import os, struct, time, zlib
SIZE, BLOCKS = 1 << 16, 512
def make(number):
    text = struct.pack("Q", number) + os.urandom(24)
    text = text * ((SIZE - 4) // len(text)) + bytes((SIZE - 4) % len(text))
    return struct.pack("I", zlib.adler32(text)) + text
data = bytearray(b"".join(make(number) for number in range(BLOCKS)))
number, rounds, bad = BLOCKS, 0, 0
while True:
    begun = due = time.monotonic()
    for at in range(0, len(data), SIZE):
        if struct.unpack_from("I", data, at)[0] != zlib.adler32(memoryview(data)[at + 4 : at + SIZE]):
            bad += 1
        data[at : at + SIZE] = make(number)
        number += 1
        due += SIZE / (50 << 20)
        if due - time.monotonic() > 0.01:
            time.sleep(due - time.monotonic())
    rounds += 1
    with open("/root/state.new", "w") as state:
        state.write(f"{rounds} {bad} {time.monotonic() - begun}")
    os.rename("/root/state.new", "/root/state")
"""

# It rewrites 32 MiB, 50 MiB a second, and says nothing but how many seconds a round took.
PLAIN = """
import os, time
data, piece = bytearray(32 << 20), os.urandom(1 << 16)
rounds = 0
while True:
    begun = due = time.monotonic()
    for at in range(0, len(data), len(piece)):
        data[at : at + len(piece)] = piece
        due += len(piece) / (50 << 20)
        if due - time.monotonic() > 0.01:
            time.sleep(due - time.monotonic())
    rounds += 1
    with open("/root/state.new", "w") as state:
        state.write(f"{rounds} 0 {time.monotonic() - begun}")
    os.rename("/root/state.new", "/root/state")
"""


@pytest.fixture(scope="module")
def large(instance):
    template = asyncio.run(Template.build("live-large", VMConfig(memory_mib=512)))
    yield template.name
    asyncio.run(template.remove())


@pytest.fixture
async def parent(large):
    async with await (await Template.open(large)).fork() as vm:
        yield vm


async def read_state(vm, beyond: int = 0) -> tuple[int, int, float]:
    """Rounds, bad blocks and seconds of the last round, once there were more than `beyond`."""
    while True:
        if await vm.exists("/root/state"):
            rounds, bad, took_s = (await vm.read_file("/root/state")).split()
            if int(rounds) > beyond:
                return int(rounds), int(bad), float(took_s)
        await asyncio.sleep(0.05)


async def start_writing(vm, program: str) -> float:
    """The program writes; MiB a second."""
    await vm.write_file("/root/writes.py", program)
    await vm.shell("setsid python3 /root/writes.py </dev/null >/dev/null 2>&1 &", check=True)
    await read_state(vm)
    return 32 / (await read_state(vm, 1))[2]


async def test_of_300_copies_of_a_machine_that_writes_99_in_100_pause_it_for_20_ms_at_most(parent) -> None:
    """The figure is a quiet machine's, where nothing else waits for its cores."""
    rate = await start_writing(parent, PLAIN)
    pauses = []
    for _ in range(300):
        with ExitStack() as opened:
            pauses.append((await take_moment(parent._running, opened)).copied.pause_s * 1e3)
    hundredths = statistics.quantiles(pauses, n=100)
    figures = f"{rate:.0f} MiB/s, median {hundredths[49]:.1f}, 95th {hundredths[94]:.1f}, 99th {hundredths[98]:.1f}"
    _log.info("pause in ms: %s, least %.1f, most %.1f", figures, min(pauses), max(pauses))
    assert hundredths[98] <= 20


async def test_what_is_guarded_by_checksums_is_whole_in_each_of_100_forks(parent) -> None:
    _log.info("%.0f MiB/s", await start_writing(parent, GUARDED))
    for _ in range(25):
        async with AsyncExitStack() as stack:
            forks = await parent.fork(4)
            for fork in forks:
                stack.push_async_callback(fork.aclose)
            before = [(await read_state(fork))[0] for fork in forks]
            # One round after the one that it was in: each block that came along was checked.
            states = await asyncio.gather(*(read_state(fork, was + 1) for fork, was in zip(forks, before, strict=True)))
            assert [bad for _, bad, _ in states] == [0] * 4
    assert (await read_state(parent, (await read_state(parent))[0] + 1))[1] == 0


async def test_256_mib_of_random_data_have_one_digest_in_parent_and_forks(parent) -> None:
    made = "mount -o remount,size=400M / && head -c 256M /dev/urandom > /root/data && sha256sum < /root/data"
    sha256 = (await parent.shell(made, check=True)).stdout
    async with AsyncExitStack() as stack:
        forks = await parent.fork(2)
        for fork in forks:
            stack.push_async_callback(fork.aclose)
        for vm in (*forks, parent):
            assert (await vm.shell("sha256sum < /root/data", check=True)).stdout == sha256
        await forks[0].shell("printf x | dd of=/root/data conv=notrunc", check=True)
        assert (await forks[0].shell("sha256sum < /root/data", check=True)).stdout != sha256
        for vm in (forks[1], parent):
            assert (await vm.shell("sha256sum < /root/data", check=True)).stdout == sha256
