"""Code in one call: what a warm interpreter saves a fork, a call beside a REPL by hand, and a machine for each test."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from benchmarks.suite.figures import Row, Samples, Side, Target, milliseconds
from benchmarks.suite.measure import Measure
from vmfork.api.template import Template
from vmfork.config import VMConfig

if TYPE_CHECKING:
    from benchmarks.suite.context import Context

_CALLS = 50
_TESTS = 20
_PRODUCT = "import numpy\nfloat((numpy.ones((64, 64)) @ numpy.ones((64, 64))).sum())"
_SCRIPT = _PRODUCT.replace("\nfloat", "\nprint(float") + ")"
# As short as such a thing is written: it reads a line, evaluates it, and prints the value.
_REPL = "import sys\nfor line in sys.stdin: print(eval(line), flush=True)"
_SUITE = """
import time
import pytest, vmfork

@pytest.fixture(scope="session")
def vm_template():
    return vmfork.Template.open("bench-code")

begun, by_hand, by_fixture = [], [], []

def test_warm(vm_template):
    for _ in range(3):
        vm_template.fork().close()
"""
# In turns: the machine's noise is in both.
_ROUND = """
def test_begins_{number}():
    begun.append(time.perf_counter())

def test_with_the_fixture_{number}(vm):
    pass

def test_by_hand_{number}(vm_template):
    now = time.perf_counter()
    by_fixture.append(now - begun[-1])
    vm_template.fork().close()
    by_hand.append(time.perf_counter() - now)
"""
_TOLD = """
def test_told():
    print("by hand", *by_hand)
    print("by fixture", *by_fixture)
"""


async def run(context: Context) -> Samples:
    samples = Samples()
    context.report("building a template with a warm NumPy")
    template = await Template.build(
        "bench-code",
        VMConfig(memory_mib=384),
        packages=["python3-numpy"],
        warm_up=[f"#!python\n{_PRODUCT}"],
        places=context.places,
    )

    async def product(*, warm: bool) -> float:
        begun = time.perf_counter()
        async with template.fork() as vm:
            if warm:
                await vm.run_code(_PRODUCT, check=True)
            else:
                await vm.exec(["python3", "-c", _SCRIPT], check=True)
            return time.perf_counter() - begun

    products: dict[str, Side] = {"warm": lambda: product(warm=True), "started": lambda: product(warm=False)}
    await context.interleave(samples, products, rounds=8)
    await _compare_calls(context, samples, template)
    await _run_tests(context, samples)
    return samples


async def _compare_calls(context: Context, samples: Samples, template: Template) -> None:
    async with AsyncExitStack() as owned:
        vm = await owned.enter_async_context(template.fork())
        repl = await owned.enter_async_context(vm.start(["python3", "-c", _REPL], stdin=True))
        output = repl.output()

        async def calls() -> float:
            begun = time.perf_counter()
            for _ in range(_CALLS):
                await vm.run_code("1 + 1")
            return time.perf_counter() - begun

        async def by_hand() -> float:
            begun = time.perf_counter()
            for _ in range(_CALLS):
                await repl.write_stdin(b"1 + 1\n")
                await anext(output)
            return time.perf_counter() - begun

        await context.interleave(samples, {"calls": calls, "repl": by_hand}, rounds=20)


async def _run_tests(context: Context, samples: Samples) -> None:
    """A run of pytest that has no plugin but ours."""
    folder = context.scratch("tests")
    rounds = [_ROUND.format(number=number) for number in range(context.count_rounds(_TESTS))]
    (folder / "test_cost.py").write_text("".join([_SUITE, *rounds, _TOLD]))
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "vmfork.testing.plugin", "-rA"]
    process = await asyncio.create_subprocess_exec(
        *(*argv, "-c", os.devnull, f"--rootdir={folder}", str(folder)),
        env=context.environment({"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}),
        stdout=asyncio.subprocess.PIPE,
    )
    said = (await process.communicate())[0].decode()
    for kind in "hand", "fixture":
        told = re.search(rf"^by {kind} (.+)$", said, re.MULTILINE)
        if told is None:
            raise RuntimeError(f"the tests did not run:\n{said}")
        for value in told[1].split():
            samples.add(f"tests-{kind}", float(value))


MEASURE = Measure(
    name="code",
    title="Code in one call, and a machine for each test",
    unit="s",
    run=run,
    budget_s=60.0,
    is_asked_for=True,
    rows=(
        Row(
            key="code.product",
            text="fork to a product of NumPy by an interpreter that it starts, over a warm one",
            kind="ratio",
            of="started",
            to="warm",
            target=Target(at_least=5.0),
            smaller_is_better=False,
            bounds="The first call of a fork connects, and QEMU translates what it runs for the first time.",
        ),
        milliseconds("code.warm", "fork to a product of NumPy, warm", of="warm"),
        Row(
            key="code.calls",
            text="50 calls in a warm context, over 50 by a REPL of three lines",
            kind="ratio",
            of="calls",
            to="repl",
            target=Target(at_most=1.3),
            bounds="The loopback costs more than a pipe. A call keeps its code for tracebacks, and looks whether it "
            "has written anything.",
        ),
        milliseconds("code.calls.time", "50 calls in a warm context", of="calls"),
        Row(
            key="code.tests",
            text="a test with the fixture `vm`, over a fork that is made and ended",
            kind="ratio",
            of="tests-fixture",
            to="tests-hand",
            target=Target(at_most=1.1),
            bounds="What pytest does for a test.",
        ),
    ),
)
