"""Forks of a warm server: twenty that answer at forwarded ports, beside twenty that run a program."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from benchmarks.suite.context import MEMORY_MIB
from benchmarks.suite.figures import Row, Samples, Target, milliseconds
from benchmarks.suite.measure import Measure
from vmfork.api.template import Template
from vmfork.config import VMConfig

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.suite.context import Context
    from vmfork.api.vm import VM

_PORT = 8000
_COUNT, _QUICK_COUNT = 20, 4
# A fork under TCG, with all it writes.
_FORK_MIB = 100
_LIMIT_S = 60.0
# It has answered before it is frozen.
_FETCH = f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{_PORT}/hostname')"
_WARM_UP = (
    f"setsid python3 -m http.server {_PORT} --bind 127.0.0.1 --directory /etc >/dev/null 2>&1 &",
    f'until python3 -c "{_FETCH}" 2>/dev/null; do sleep 0.1; done',
)


async def _answer(vm: VM) -> None:
    async with vm.forward(_PORT) as port:
        reader, writer = await asyncio.open_connection(port.host, port.host_port)
        writer.write(b"GET /hostname HTTP/1.0\r\n\r\n")
        answer = await reader.read()
        writer.close()
    if vm.id.encode() not in answer:
        raise AssertionError(answer)


async def _run_program(vm: VM) -> None:
    await vm.exec(["true"], check=True, timeout_s=_LIMIT_S)


def _at_once(template: Template, count: int, act: Callable[[VM], Awaitable[None]]) -> Callable[[], Awaitable[float]]:
    async def work() -> float:
        async with AsyncExitStack() as stack:

            async def one() -> None:
                vm = await template.fork(timeout_s=_LIMIT_S)
                stack.push_async_callback(vm.aclose)
                await act(vm)

            begun = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(one())
            return time.perf_counter() - begun

    return work


async def run(context: Context) -> Samples:
    count = _QUICK_COUNT if context.quick else _COUNT
    context.check_memory(count * _FORK_MIB)
    template = await Template.build(
        "bench-served", VMConfig(memory_mib=MEMORY_MIB), warm_up=_WARM_UP, places=context.places
    )
    samples = Samples()
    sides = {"answer": _at_once(template, count, _answer), "program": _at_once(template, count, _run_program)}
    await context.interleave(samples, sides, rounds=5, quick_rounds=1)
    return samples


MEASURE = Measure(
    name="served",
    title="Forks of a warm server",
    unit="s",
    run=run,
    budget_s=25.0,
    is_asked_for=True,
    rows=(
        Row(
            key="served.20",
            text="20 forks whose forwarded ports have answered, over 20 forks that have run a program",
            kind="ratio",
            of="answer",
            to="program",
            target=Target(at_most=1.3),
            bounds="Python in the guest answers, whose code is emulated anew in each fork",
        ),
        milliseconds("served.20-time", "20 forks at once, until the last has answered", of="answer"),
    ),
)
