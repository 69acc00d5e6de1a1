"""Machines taken from a VM cache server by several processes at once: each given once, none lost, how many a second."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from contextlib import AsyncExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING

from benchmarks.suite.by_hand import forks_per_second
from benchmarks.suite.figures import NotRun, Row, Samples, Target
from benchmarks.suite.measure import Measure
from benchmarks.suite.measures.rate import CONCURRENCY

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from benchmarks.suite.context import Context

_CLIENTS, _POOL = 8, 4
_TAKES, _QUICK_TAKES = 200, 16
_START_LIMIT_S = 60.0
_END_LIMIT_S = 30.0

_CLIENT = """
import json, sys, vmfork
with vmfork.Factory(vmfork.FactoryConfig(remote=True)) as factory:
    print("ready", flush=True)
    sys.stdin.readline()
    taken = []
    for _ in range(int(sys.argv[1])):
        with factory.get_vm() as vm:
            vm.exec(["true"], check=True)
            taken.append(vm.id)
    print(json.dumps({"taken": taken, "fallbacks": dict(factory.stats().fallbacks)}))
"""


async def run(context: Context) -> Samples:
    if find_spec("grpc") is None:
        raise NotRun("grpcio is not installed: pip install 'vmfork[server]'")
    template = await context.template()
    source = await context.raw_source(template)
    takes = _QUICK_TAKES if context.quick else _TAKES
    served = {
        "VMFORK_FACTORY_TEMPLATE": "true",
        "VMFORK_FACTORY_TEMPLATE_NAME": template.name,
        "VMFORK_FACTORY_CACHE": str(_POOL),
    }

    async def from_the_server() -> float:
        async with AsyncExitStack() as owned:
            server = await _start(owned, *context.command("factory", "init", "--json"), env=context.environment(served))
            await _read_line(server)
            clients = [
                await _start(owned, sys.executable, "-c", _CLIENT, str(takes // _CLIENTS), env=context.environment())
                for _ in range(_CLIENTS)
            ]
            for client in clients:
                await _read_line(client)
            begun = time.perf_counter()
            ends = await asyncio.gather(*(client.communicate(b"go\n") for client in clients))
            took_s = time.perf_counter() - begun
        check_takes([json.loads(out) for out, _ in ends], takes)
        return takes / took_s

    async def by_hand() -> float:
        return await asyncio.to_thread(forks_per_second, source, takes, concurrency=CONCURRENCY)

    samples = Samples()
    sides = {"server": from_the_server, "raw": by_hand}
    await context.interleave(samples, sides, rounds=1, quick_rounds=1, warm_up=0)
    return samples


def check_takes(told: list[dict[str, object]], takes: int) -> None:
    """Raises `RuntimeError` unless all machines were taken from the pool, each once."""
    taken = [vm_id for one in told for vm_id in one["taken"]]  # type: ignore[attr-defined]
    fallbacks = [one["fallbacks"] for one in told if one["fallbacks"]]
    if fallbacks:
        raise RuntimeError(f"machines were booted, not taken: {fallbacks}")
    if len(taken) != takes or len(set(taken)) != takes:
        raise RuntimeError(f"{len(taken)} machines were taken, {len(set(taken))} different ones, of {takes} asked for")


async def _start(owned: AsyncExitStack, *argv: str, env: dict[str, str]) -> Process:
    pipe = asyncio.subprocess.PIPE
    nowhere = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*argv, env=env, stdin=pipe, stdout=pipe, stderr=nowhere)
    owned.push_async_callback(_end, process)
    return process


async def _read_line(process: Process) -> None:
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), _START_LIMIT_S)
    if not line:
        raise RuntimeError(f"a process ended before it was ready (exit status {await process.wait()})")


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), _END_LIMIT_S)
        except TimeoutError:
            process.kill()
            await process.wait()


MEASURE = Measure(
    name="clients",
    title="Taking machines from a server, by eight processes at once",
    unit="1/s",
    run=run,
    budget_s=50.0,
    rows=(
        Row(
            key="clients.rate",
            text="raw baseline's forks per second, over takes per second by 8 clients of a server that keeps 4",
            kind="ratio",
            of="raw",
            to="server",
            target=Target(at_most=1.3),
            bounds="The cores are busy with QEMU; eight clients, the server and gRPC come on top, on the same cores.",
        ),
        Row(
            key="clients.takes",
            text="takes per second by 8 clients, 200 in all, each machine once",
            kind="value",
            of="server",
            unit="/s",
            smaller_is_better=False,
        ),
    ),
)
