"""The operations: each prepares what it needs, and does its work inside `stage`, where its steps count.

A step is a touch of the host that vmfork makes (`tests/refusals.py`), or something that its progress tells.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.aio import VM, Allow, Factory, FactoryConfig, ImageConfig, Network, Places, Template, VMConfig, find_places
from vmfork.cli.forwarder import leave_answerer, leave_forwarder, leave_network
from vmfork.config import DEFAULT_IMAGE, Instance
from vmfork.image.build import build_image
from vmfork.image.store import ImageStore
from vmfork.machine.base import BaseVM
from vmfork.machine.folder import VMFolder, new_vm_id, sweep_vms
from vmfork.network.address import HostAddress
from vmfork.store import TemplateStore
from vmfork.template import making
from vmfork.travel.images.moving import Target, load_image, save_image

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import AbstractContextManager

    from vmfork.progress import ProgressListener

LIMIT_S = 60.0
# A detached machine that nobody takes is gone by itself, should everything else fail.
TTL_S = 600.0
# What the operations build, replace and remove.
NEW, OLD = "chaos-new", "chaos-old"
# In the guest: crashes it a moment after the fork has become another. The loop was frozen in a template's warm-up.
CRASH_WHEN_ADOPTED = (
    'f=/run/vmfork/fork-id; (was=$(cat $f); while [ "$(cat $f)" = "$was" ]; do :; done; sleep 0.0$(($$ % 10)); '
    "echo c > /proc/sysrq-trigger) </dev/null >/dev/null 2>&1 &"
)


@dataclass
class Stage:
    """What a life is given. `steps` are counted inside `stage()`; `crash` has the guest crash during the work."""

    template: str
    steps: Callable[[], AbstractContextManager[None]]
    progress: ProgressListener
    crash: bool = False
    seed: int = 0
    options: Mapping[str, str] = field(default_factory=dict)

    async def fork(self) -> VM:
        """A fork whose guest, where it is to crash, does so within the next moments."""
        vm = await (await Template.open(self.template)).fork()
        if self.crash:
            delay = random.Random(self.seed).uniform(0, 0.4)
            crash = f"sleep {delay:.3f}; echo c > /proc/sysrq-trigger"
            await vm.shell(f"setsid sh -c '{crash}' </dev/null >/dev/null 2>&1 &")
        return vm


async def fork(stage: Stage) -> None:
    template = await Template.open(stage.template)
    with stage.steps():
        async with template.fork(files={"/run/given": "x"}, env={"A": "b"}) as vm:
            (await vm.exec(["cat", "/run/given"], timeout_s=LIMIT_S)).check()


async def adopt(stage: Stage) -> None:
    """A machine that was nobody's becomes one's own, as a pool's does."""
    template = await Template.open(stage.template)
    base = await template._source.fork_base()
    await base.park(timeout_s=LIMIT_S)
    handle = await base.detach(ttl_s=TTL_S)
    with stage.steps():
        again = await BaseVM.attach(handle)
        async with VM(*await again.adopt(timeout_s=LIMIT_S)) as vm:
            (await vm.exec(["true"], timeout_s=LIMIT_S)).check()


async def execute(stage: Stage) -> None:
    async with await stage.fork() as vm:
        with stage.steps():
            (await vm.exec(["cat"], input=b"x" * 300_000, timeout_s=LIMIT_S)).check()
            await vm.write_file("/tmp/x", b"x" * 300_000)
            await vm.read_file("/tmp/x")
            async with vm.start(["cat"], stdin=True) as process:
                await process.write_stdin(b"x")
                await process.close_stdin()
                async for _ in process.output():
                    pass
            await vm.pause()
            await vm.resume()


async def hand_over(stage: Stage) -> None:
    vm = await stage.fork()
    with stage.steps():
        handle = await vm.detach(ttl_s=TTL_S)
        async with VM.attach(handle) as again:
            (await again.exec(["true"], timeout_s=LIMIT_S)).check()


async def detach(stage: Stage) -> None:
    """The process ends, and the machine stays for whoever takes it."""
    vm = await stage.fork()
    with stage.steps():
        await vm.detach(ttl_s=TTL_S)


async def start(stage: Stage) -> None:
    """The process ends, and the machine stays, its broker's, for whoever is its client."""
    template = await Template.open(stage.template)
    with stage.steps():
        async with template.start(name=f"chaos-{os.getpid()}", ttl_s=TTL_S) as vm:
            (await vm.exec(["true"], timeout_s=LIMIT_S)).check()


async def connect(stage: Stage) -> None:
    """Two clients of one machine, a program in its background, and an owner in the end."""
    template = await Template.open(stage.template)
    async with template.start(ttl_s=TTL_S) as vm:
        with stage.steps():
            async with VM.connect(vm.id) as other:
                process = await vm.start(["sh", "-c", "read line < /dev/zero; echo x"], background=True)
                (await other.exec(["cat"], input=b"x" * 300_000, timeout_s=LIMIT_S)).check()
                await process.kill()
                await process.wait(timeout_s=LIMIT_S)
                async with VM.attach(vm.id) as owner:
                    (await owner.exec(["true"], timeout_s=LIMIT_S)).check()


async def network(stage: Stage) -> None:
    """Ways out of a machine, one that changes, ports that lead into it and out of it, and a service of another's."""
    template = await Template.open(stage.template)
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(await asyncio.start_server(_greet, "127.0.0.1", 0))
        here = f"127.0.0.1:{service.sockets[0].getsockname()[1]}"
        vm = await stack.enter_async_context(await stage.fork())
        with stage.steps():
            async with template.fork(network=Allow(here)) as other:
                (await other.exec(["curl", "-sS", "--noproxy", "", f"http://{here}/"], timeout_s=LIMIT_S)).check()
                await vm.set_network(Allow("db.example.org:5432"))
                await vm.set_network("none")
                async with vm.reverse(here, 8000), vm.forward(8000) as port:
                    reader, writer = await asyncio.open_connection(port.host, port.host_port)
                    await _say(reader, writer)
                job = Network("job")
                for each in (vm, other):
                    await each.join(job)
                await other.expose(8000, "db")
                async with other.reverse(here, 8000):
                    (await vm.exec(["curl", "-sS", "http://db:8000/"], timeout_s=LIMIT_S)).check()


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nhello")
        await writer.drain()
    writer.close()


async def _say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """It is answered, or reset, as the connection of a machine that ends is."""
    with suppress(ConnectionError):
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        async with asyncio.timeout(LIMIT_S):
            await reader.read()
    writer.close()


async def left(stage: Stage) -> None:
    """A machine stands alone; processes of its own hold what it may reach, forward a port, answer who forks it."""
    template = await Template.open(stage.template)
    with stage.steps():
        async with template.start(ttl_s=TTL_S) as vm:
            await leave_network(vm.id, Allow("db.example.org:5432"))
            await leave_forwarder(vm.id, [(HostAddress("127.0.0.1"), 8000)])
            await leave_answerer(vm.id, 1)
            (await vm.exec(["true"], timeout_s=LIMIT_S)).check()


async def branch(stage: Stage) -> None:
    """A running machine is forked, and a fork of it."""
    async with await stage.fork() as vm:
        with stage.steps():
            (child,) = await vm.fork(files={"/run/given": "x"})
            async with child:
                (grandchild,) = await child.fork()
                async with grandchild:
                    (await grandchild.exec(["cat", "/run/given"], timeout_s=LIMIT_S)).check()
            (await vm.exec(["true"], timeout_s=LIMIT_S)).check()


# So much is on it that a copy takes a while, and so large is it.
_FILL = "head -c 8M /dev/urandom > /scratch/data; cksum < /scratch/data > /root/sum"
_SAME = 'test "$(cksum < /scratch/data)" = "$(cat /root/sum)"'
_DISK = "64M"


async def _look_at_disk(vm: VM) -> None:
    (await vm.shell(f"echo 3 > /proc/sys/vm/drop_caches; {_SAME}", timeout_s=LIMIT_S)).check()


async def disk(stage: Stage) -> None:
    """A fork is given a disk, and forked with it while it runs."""
    template = await Template.open(stage.template)
    with stage.steps():
        async with template.fork(disk=_DISK) as vm:
            (await vm.shell(_FILL, timeout_s=LIMIT_S)).check()
            (child,) = await vm.fork()
            async with child:
                await _look_at_disk(child)
            await _look_at_disk(vm)


async def disk_kept(stage: Stage) -> None:
    """What is on a machine's disk is gone back to, and frozen: a file of the store, which is gone with the template."""
    template = await Template.open(stage.template)
    async with template.fork(disk=_DISK) as vm:
        (await vm.shell(_FILL, timeout_s=LIMIT_S)).check()
        with stage.steps():
            async with vm.checkpoint() as point:
                (await vm.shell("rm /scratch/data", timeout_s=LIMIT_S)).check()
                await vm.rollback(point)
            frozen = await vm.freeze(NEW, replace=True)
            async with frozen.fork() as again:
                await _look_at_disk(again)
            await frozen.remove()


# It exits with 1 when it is told of another end than its fork's own; that it is refused, or its fork struck, is none.
_FORKS_ITSELF = """
import vmfork_guest as g
try:
    if g.fork():
        g.exit(7)
    raise SystemExit(g.wait().status not in (7, None))
except g.ForkError:
    pass
"""


async def inside(stage: Stage) -> None:
    """A program forks its machine, and waits for the end of the fork, which is its owner's."""
    template = await Template.open(stage.template)
    with stage.steps():
        async with template.fork(allow_guest_fork=1) as vm:
            (await vm.exec(["python3", "-c", _FORKS_ITSELF], timeout_s=LIMIT_S)).check()


async def freeze(stage: Stage) -> None:
    """A running machine is frozen, and goes on."""
    async with await stage.fork() as vm:
        with stage.steps():
            await vm.freeze(NEW, replace=True)
            (await vm.exec(["true"], timeout_s=LIMIT_S)).check()


async def go_back(stage: Stage) -> None:
    """A machine goes back to a checkpoint, twice."""
    async with await stage.fork() as vm:
        await vm.write_file("/run/kept", b"x")
        with stage.steps():
            async with vm.checkpoint() as point:
                for _ in range(2):
                    await vm.rollback(point)
                    (await vm.exec(["cat", "/run/kept"], timeout_s=LIMIT_S)).check()


async def revive(stage: Stage) -> None:
    """A machine that stands alone goes back to what it keeps, as a client has it, and after it has ended."""
    template = await Template.open(stage.template)
    async with template.start(ttl_s=TTL_S) as vm:
        with stage.steps():
            await vm.checkpoint(lasting=True)
            await vm.rollback()
            os.kill(vm.pid, signal.SIGKILL)
            await vm._running.machine.wait()
            async with VM.revive(vm.id) as again:
                (await again.exec(["true"], timeout_s=LIMIT_S)).check()


async def build(stage: Stage) -> None:
    with stage.steps():
        await _build(stage, NEW)


async def replace(stage: Stage) -> None:
    with stage.steps():
        await _build(stage, OLD, replace=True)


async def layers(stage: Stage) -> None:
    """A template is built step by step, each of which is kept, and then one that differs in the last step."""
    making.LAYER_WORTH_S = making.LAST_WORTH_S = 0.0
    crash = "echo c > /proc/sysrq-trigger"
    with stage.steps():
        for last in ("true", crash if stage.crash else "true #"):
            steps = [{"run": "echo x > /root/kept"}, {"start": "exec sleep 1000"}, {"run": last}]
            await Template.build(NEW, steps=steps, replace=True, progress=stage.progress)


async def remove(stage: Stage) -> None:
    template = await Template.open(OLD)
    with stage.steps():
        await template.remove()


async def travel(stage: Stage) -> None:
    """A template goes into a file, comes out of it under another name, and is kept on disk there."""
    template, file = await Template.open(stage.template), Path(stage.options["programs"]) / "travel.tar"
    with stage.steps():
        await template.save(file, progress=stage.progress)
        loaded = await Template.load(file, NEW, replace=True, progress=stage.progress)
        await loaded.persist(progress=stage.progress)


async def image_travel(stage: Stage) -> None:
    """An image goes into a file, and comes out of it where none is."""
    folder = Path(stage.options["programs"])
    store = ImageStore(Path(stage.options["images"]))
    here = Instance(find_places(), stage.progress)
    there = Instance(Places(home=store.folder.parent, runtime=here.places.runtime), stage.progress)
    with stage.steps():
        await save_image(DEFAULT_IMAGE, folder / "image.tar", instance=here)
        await load_image(folder / "image.tar", Target(instance=there, name="travelled", replace_it=True))
        store.remove("travelled")


async def _build(stage: Stage, name: str, *, replace: bool = False) -> None:
    warm_up = ["echo c > /proc/sysrq-trigger" if stage.crash else "true"]
    await Template.build(name, VMConfig(), warm_up=warm_up, ready="true", replace=replace, progress=stage.progress)


async def image(stage: Stage) -> None:
    """mmdebstrap's place is taken by a script that writes the same small tar each time; all else is real."""
    store = ImageStore(Path(stage.options["images"]))
    os.environ["PATH"] = f"{stage.options['programs']}:{os.environ['PATH']}"
    with stage.steps():
        await build_image("chaos", ImageConfig(bare=True), store=store, progress=stage.progress, rebuild=True)


async def take(stage: Stage) -> None:
    """A machine of a server's pool; it is booted in nobody's place."""
    config = FactoryConfig(remote=True, fallback="refuse")
    with stage.steps():
        async with Factory(config) as factory, factory.get_vm(timeout_s=LIMIT_S) as vm:
            (await vm.exec(["true"], timeout_s=LIMIT_S)).check()


async def sweep(stage: Stage) -> None:
    """Whoever asks what is there, beside what a killed process left, and a sweep of it."""
    places = find_places()
    for _ in range(2):
        VMFolder.create(places.vms, new_vm_id()).release()
    with stage.steps():
        await VM.list()
        await Template.list()
        sweep_vms(places.vms)
        TemplateStore(places.templates).sweep()
        ImageStore(places.images).sweep()


LIVES: Mapping[str, Callable[[Stage], Awaitable[None]]] = {
    "fork": fork,
    "adopt": adopt,
    "exec": execute,
    "hand-over": hand_over,
    "detach": detach,
    "start": start,
    "connect": connect,
    "network": network,
    "left": left,
    "branch": branch,
    "disk": disk,
    "disk-kept": disk_kept,
    "inside": inside,
    "freeze": freeze,
    "roll-back": go_back,
    "revive": revive,
    "build": build,
    "replace": replace,
    "layers": layers,
    "remove": remove,
    "image": image,
    "travel": travel,
    "image-travel": image_travel,
    "take": take,
    "sweep": sweep,
}
