"""What a way out costs a fork, and a card; and what it takes until many forks answer at ports of the host."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.suite.by_hand import call_port
from benchmarks.suite.context import MEMORY_MIB
from benchmarks.suite.cpu import cpu_seconds_of
from benchmarks.suite.figures import NotRun, Row, Samples, Side, Target, milliseconds
from benchmarks.suite.measure import Measure
from vmfork.aio import Allow, Template
from vmfork.config import VMConfig
from vmfork.host.memory import read_private

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from benchmarks.suite.context import Context
    from vmfork.api.vm import VM
    from vmfork.network.policy import NetworkPolicy

    Ask = Callable[[VM], Awaitable[None]]

_PORT = 9100
_SERVER = f"""
cat > /tmp/greeter.py <<'END'
import socket
s = socket.create_server(("127.0.0.1", {_PORT}), backlog=20)
while True:
    c = s.accept()[0]
    c.sendall(open("/run/vmfork/fork-id", "rb").read())
    c.close()
END
setsid python3 /tmp/greeter.py >/dev/null 2>&1 &
"""
_COUNT, _QUICK_COUNT = 20, 4
# A fork under TCG, with all it writes.
_FORK_MIB = 100
_LIMIT_S = 60.0
# A list as usual, which the proxy alone serves; and one whose host is in the guest's hosts file as well.
_POLICIES: Mapping[str, NetworkPolicy] = {
    "none": "none",
    "list": Allow("api.example.org", "*.example.com"),
    "named": Allow("db.example.org:5432"),
}


async def _time_fork(template: Template, policy: NetworkPolicy, name: str) -> Mapping[str, float]:
    own, begun = time.process_time(), time.perf_counter()
    async with template.fork(network=policy) as vm:
        await vm.exec(["true"], check=True)
        took = time.perf_counter() - begun
        return {
            f"{name} exec": took,
            f"{name} cpu": time.process_time() - own + cpu_seconds_of(vm.pid),
            f"{name} private": read_private(vm.pid),
        }


async def _time_many(template: Template, count: int, ask: Ask) -> float:
    """Until the last of `count` forks was asked, which begins when it is handed out."""
    async with AsyncExitStack() as stack:

        async def one() -> None:
            vm = await template.fork(timeout_s=_LIMIT_S)
            stack.push_async_callback(vm.aclose)
            await ask(vm)

        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(one())
        return time.perf_counter() - begun


async def _ask_nothing(_vm: VM) -> None:
    """It was handed out."""


async def _run(vm: VM) -> None:
    """It has run a program."""
    await vm.exec(["true"], check=True)


async def _ask_by_hand(vm: VM) -> None:
    """It has answered by hand over its line, without any port of the host's."""
    _check_answer(vm, await call_port(vm, _PORT))


def _check_answer(vm: VM, answer: bytes) -> None:
    if answer.decode().strip() != vm.id:
        raise NotRun(f"fork {vm.id} answered {answer!r}")


async def _ask(vm: VM) -> None:
    """It has answered at a port of the host."""
    async with vm.forward(_PORT) as port:
        reader, writer = await asyncio.open_connection(port.host, port.host_port)
        answer = await reader.read()
        writer.close()
    _check_answer(vm, answer)


async def run(context: Context) -> Samples:
    template = await context.template()
    samples = Samples()
    carded = await context.build(VMConfig(memory_mib=MEMORY_MIB, nic=True))
    sides: dict[str, Side] = {name: partial(_time_fork, template, policy, name) for name, policy in _POLICIES.items()}
    sides["card"] = partial(_time_fork, carded, "none", "card")
    await context.interleave(samples, sides, rounds=15, quick_rounds=3, warm_up=2)

    count = _QUICK_COUNT if context.quick else _COUNT
    try:
        context.check_memory(count * _FORK_MIB)
    except NotRun as error:
        samples.skip("answering", str(error))
        return samples
    ready = f"python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {_PORT}))'"
    served = await Template.build("bench-answering", warm_up=[_SERVER], ready=ready, places=context.places)
    many = {"handed out": _ask_nothing, "running": _run, "by hand": _ask_by_hand, "answering": _ask}
    sides = {name: partial(_time_many, served, count, ask) for name, ask in many.items()}
    await context.interleave(samples, sides, rounds=4, quick_rounds=2)
    return samples


MEASURE = Measure(
    name="network",
    title="Ways out and ports of forks",
    unit="s",
    run=run,
    budget_s=25.0,
    is_asked_for=True,
    rows=(
        Row(
            key="network.policy",
            text="a fork with a list of names that it may reach, to its first program, over one without",
            kind="ratio",
            of="list exec",
            to="none exec",
            target=Target(at_most=1.03),
            bounds="The agent is told to listen, and each variable of the proxy is an item more that it confirms.",
        ),
        Row(
            key="network.policy-cpu",
            text="CPU time of it, ours and QEMU's, over one without",
            kind="ratio",
            of="list cpu",
            to="none cpu",
            target=Target(at_most=1.03),
            bounds="What listens in the guest is translated for it, in each fork anew.",
        ),
        Row(
            key="network.policy-more",
            text="what that list costs a fork",
            kind="difference",
            of="list exec",
            to="none exec",
            unit="ms",
            scale=1000,
        ),
        Row(
            key="network.named-more",
            text="what a list with a host and its port costs, which the guest's hosts file then has",
            kind="difference",
            of="named exec",
            to="none exec",
            unit="ms",
            scale=1000,
        ),
        Row(
            key="network.answering",
            text="20 forks, until each has answered at a port of the host, over 20 that are handed out",
            kind="ratio",
            of="answering",
            to="handed out",
            target=Target(at_most=1.3),
            bounds="Under TCG the guest's TCP and what answers are translated anew in each fork: half of its cost.",
        ),
        Row(
            key="network.answering-hand",
            text="20 forks, until each has answered at a port, over 20 that answer by hand over their lines",
            kind="ratio",
            of="answering",
            to="by hand",
            target=Target(at_most=1.1),
            bounds="A listener, a socket and an event loop stand between, for all 20.",
        ),
        Row(
            key="network.running",
            text="20 forks, until each has run a program, over 20 that are handed out",
            kind="ratio",
            of="running",
            to="handed out",
        ),
        Row(
            key="network.card",
            text="a fork whose card is down, to its first program, over one without a card",
            kind="ratio",
            of="card exec",
            to="none exec",
            target=Target(at_most=1.05),
            bounds="The agent is told an Ethernet address, and QEMU loads the state of a device more.",
        ),
        Row(
            key="network.card-cpu",
            text="CPU time of it, ours and QEMU's, over one without",
            kind="ratio",
            of="card cpu",
            to="none cpu",
        ),
        Row(
            key="network.card-private",
            text="what a card that is down adds to a fork's private memory",
            kind="difference",
            of="card private",
            to="none private",
            unit="MiB",
            scale=1 / 2**20,
        ),
        milliseconds("network.answering-time", "20 forks, until each has answered at a port", of="answering"),
    ),
)
