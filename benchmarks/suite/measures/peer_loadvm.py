"""QEMU's own snapshots: `savevm` into a small qcow2, then a new QEMU that starts from it with `-loadvm`, by hand.

What comes back is the twin of every other: nobody adopts it. RAM is read into each one's own memory.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.suite.by_hand import Monitor
from benchmarks.suite.figures import NotRun, Row, Samples, Target, milliseconds
from benchmarks.suite.measure import Measure
from vmfork.bench import raw
from vmfork.bench.fork import open_arguments, time_fork
from vmfork.image import ImageStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.suite.context import Context

_TAG = "bench"
# The disk itself holds nothing.
_DISK_SIZE = "16M"


def _save(argv: Sequence[str]) -> None:
    """A guest was booted, is quiet, and lies in the snapshot."""
    with raw.Fork(raw.Source(argv, {})) as vm:
        vm.agent.hello()
        vm.agent.exec_true()
        vm.agent.quiesce()
        told = Monitor(vm.connect_monitor()).execute("human-monitor-command", **{"command-line": f"savevm {_TAG}"})
        if told:
            raise NotRun(f"savevm said: {str(told).strip()}")


def _load(argv: Sequence[str]) -> float:
    source = raw.Source([*argv, "-loadvm", _TAG], {})
    return raw.time_one(source, adopt=False)


def _make_disk(folder: Path) -> Path:
    program = shutil.which("qemu-img")
    if program is None:
        raise NotRun("qemu-img is not installed (Debian package qemu-utils)")
    disk = folder / "state.qcow2"
    subprocess.run([program, "create", "-q", "-f", "qcow2", str(disk), _DISK_SIZE], check=True)
    return disk


async def run(context: Context) -> Samples:
    template = await context.template()
    disk = _make_disk(context.scratch("loadvm"))
    async with await context.boot() as vm:
        booted = open_arguments(vm.argv)
    # The machine was passed both opened; nobody passes them here.
    image = ImageStore(context.places.images).open(template.manifest.image)
    booted[booted.index("-kernel") + 1] = str(image.kernel)
    booted[booted.index("-initrd") + 1] = str(image.initramfs)
    booted += ["-drive", f"if=none,id=state,format=qcow2,file={disk},cache=writeback"]
    # The kernel stays: without it the machine has one ROM less than the snapshot. The initramfs is only read.
    restored = list(booted)
    del restored[(start := restored.index("-initrd")) : start + 2]
    context.report("savevm")
    _save(booted)

    async def loadvm() -> float:
        return _load(restored)

    samples = Samples()
    samples.notes.append(f"snapshot of {disk.stat().st_blocks * 512 // 2**20} MiB, in memory; restored without adopt")
    await context.interleave(
        samples, {"loadvm": loadvm, "fork": partial(time_fork, template)}, rounds=20, quick_rounds=2
    )
    return samples


MEASURE = Measure(
    name="peer-loadvm",
    title="QEMU savevm and loadvm",
    unit="s",
    run=run,
    budget_s=25.0,
    rows=(
        Row(
            key="peer-loadvm.speedup",
            text="QEMU `-loadvm` to first exec, over a fork's",
            kind="ratio",
            of="loadvm",
            to="fork",
            target=Target(at_least=1.3),
            smaller_is_better=False,
            bounds="Both translate the same first program; loadvm adopts nothing, and reads its RAM from cached pages.",
        ),
        milliseconds("peer-loadvm.time", "QEMU `-loadvm` to first exec", of="loadvm"),
    ),
)
