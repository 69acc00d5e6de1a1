"""libvirt: `virsh save` once, then `virsh restore` again and again, to the result of a first program.

A daemon of our own runs the same kernel and initramfs; what comes back is nobody's own, as with loadvm.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.suite.context import MEMORY_MIB
from benchmarks.suite.figures import Row, Samples, milliseconds
from benchmarks.suite.measure import Measure
from benchmarks.suite.peers.libvirt import Daemon
from vmfork.bench import raw
from vmfork.bench.fork import time_fork
from vmfork.hypervisor.qemu import AGENT_PORT
from vmfork.image import ImageStore
from vmfork.machine.plan import KERNEL_ARGS, choose_root

if TYPE_CHECKING:
    from benchmarks.suite.context import Context


def _connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    return client


def _save(daemon: Daemon, domain: Path, agent: Path, state: Path) -> None:
    daemon.virsh("create", str(domain))
    with _connect(agent) as client:
        line = raw.Line(client)
        line.hello()
        line.exec_true()
        line.quiesce()
    daemon.virsh("save", "bench", str(state))


def _restore(daemon: Daemon, agent: Path, state: Path) -> float:
    begun = time.perf_counter()
    daemon.virsh("restore", str(state))
    with _connect(agent) as client:
        raw.Line(client).exec_true()
        took = time.perf_counter() - begun
    daemon.virsh("destroy", "bench")
    return took


async def run(context: Context) -> Samples:
    template = await context.template()
    manifest = template.manifest
    image = ImageStore(context.places.images).open(manifest.image)
    # The daemon's user may not enter our runtime folder, and a socket's path is at most 107 bytes long.
    with tempfile.TemporaryDirectory(prefix="vmfork-bench-", dir="/dev/shm") as name:
        folder = Path(name)
        kernel, initramfs = (shutil.copy(path, folder) for path in (image.kernel, image.initramfs))
        agent, state = folder / "agent.sock", folder / "state"
        async with await Daemon.open(folder) as daemon:
            domain = daemon.define(
                kind="kvm" if manifest.traits["accel"] == "kvm" else "qemu",
                cpu="host-passthrough" if manifest.traits["accel"] == "kvm" else "maximum",
                memory_mib=MEMORY_MIB,
                kernel=kernel,
                initramfs=initramfs,
                arguments=f"{KERNEL_ARGS} {choose_root(image.kernel_release)} norandmaps",
                emulator=manifest.qemu_path,
                socket=agent,
                port=AGENT_PORT,
            )
            context.report("virsh save")
            _save(daemon, domain, agent, state)

            async def restore() -> float:
                return _restore(daemon, agent, state)

            async def fork() -> float:
                return await time_fork(template)

            samples = Samples()
            samples.notes.append(
                f"saved state of {state.stat().st_size // 2**20} MiB, in memory; restored without adopt"
            )
            await context.interleave(samples, {"restore": restore, "fork": fork}, rounds=12, quick_rounds=1)
    return samples


MEASURE = Measure(
    name="peer-libvirt",
    title="libvirt save and restore",
    unit="s",
    run=run,
    budget_s=30.0,
    rows=(
        Row(
            key="peer-libvirt.speedup",
            text="libvirt `virsh restore` to first exec, over a fork's",
            kind="ratio",
            of="restore",
            to="fork",
            smaller_is_better=False,
        ),
        milliseconds("peer-libvirt.time", "libvirt `virsh restore` to first exec", of="restore"),
    ),
)
