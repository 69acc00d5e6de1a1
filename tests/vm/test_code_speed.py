"""What a warm interpreter saves, and what a call costs beside a REPL by hand: measured on a quiet host alone."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.vm.cli_runner import vmfork
from tests.vm.least import boots_in_its_least
from vmfork.aio import VM, Template
from vmfork.config import VMConfig
from vmfork.wire.frame import Channel

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.limit_s(1200), pytest.mark.needs("mmdebstrap")]

IMAGE = "code-speed"
PRODUCT = "import numpy\nfloat((numpy.ones((64, 64)) @ numpy.ones((64, 64))).sum())"
CALLS = 50
# As short as such a thing is written: it reads a line, evaluates it, and prints the value.
REPL = "import sys\nfor line in sys.stdin: print(eval(line), flush=True)"


@pytest.fixture(scope="module")
def warm_name(instance):
    vmfork("image", "build", IMAGE, "--package", "python3-numpy", limit_s=900).check()
    config = VMConfig(image=IMAGE, memory_mib=384)
    template = asyncio.run(Template.build("code-speed", config, warm_up=[f"#!python\n{PRODUCT}"]))
    yield "code-speed"
    asyncio.run(template.remove())
    vmfork("image", "rm", IMAGE).check()


async def test_the_image_boots_in_exactly_its_least_memory(warm_name, instance) -> None:
    await boots_in_its_least(IMAGE, instance)


async def test_a_warm_interpreter_is_five_times_as_fast_as_one_started_in_the_fork(warm_name, capsys) -> None:
    template = await Template.open(warm_name)

    async def measure(warm: bool) -> float:
        begun = time.perf_counter()
        async with template.fork() as vm:
            if warm:
                assert (await vm.run_code(PRODUCT, timeout_s=300)).value == "262144.0"
            else:
                script = PRODUCT.replace("\nfloat", "\nprint(float") + ")"
                assert (await vm.exec(["python3", "-c", script], timeout_s=300)).stdout == "262144.0\n"
            return time.perf_counter() - begun

    warm, cold = [min([await measure(kind) for _ in range(5)]) for kind in (True, False)]
    with capsys.disabled():
        print(f"\nfork to a product of NumPy: warm {warm * 1000:.0f} ms, started in the fork {cold * 1000:.0f} ms")
    assert warm * 5 <= cold


async def test_calls_cost_at_most_a_third_more_than_by_a_repl_of_ones_own(warm_name, capsys) -> None:
    async with (await Template.open(warm_name)).fork() as vm:
        await vm.run_code("1 + 1")
        async with vm.start(["python3", "-c", REPL], stdin=True) as repl:
            by_hand = _make_caller(repl)
            ours, theirs = [], []
            for _ in range(5):
                ours.append(await _measure(lambda: _call(vm)))
                theirs.append(await _measure(by_hand))
    with capsys.disabled():
        print(f"\n{CALLS} calls: {min(ours) * 1000:.0f} ms, by a REPL {min(theirs) * 1000:.0f} ms")
    assert min(ours) <= 1.3 * min(theirs)


async def _measure(call) -> float:
    begun = time.perf_counter()
    for _ in range(CALLS):
        await call()
    return time.perf_counter() - begun


async def _call(vm: VM) -> None:
    assert (await vm.run_code("1 + 1")).value == "2"


def _make_caller(repl):
    output = repl.output()

    async def call() -> None:
        await repl.write_stdin(b"1 + 1\n")
        assert await anext(output) == (Channel.STDOUT, b"2\n")

    return call
