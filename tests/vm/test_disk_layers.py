"""Layers of machines with a disk: what earlier steps wrote on it is there, and nobody reads it from another's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vm.cli_runner import left_of, vmfork
from vmfork.aio import Template
from vmfork.config import VMConfig
from vmfork.host.tmpfs import mount_tmpfs, unmount
from vmfork.image import DiskStore
from vmfork.store import TemplateStore
from vmfork.store.layers import LayerStore
from vmfork.template import making
from vmfork.template.removal import remove_template
from vmfork.units import MIB

pytestmark = pytest.mark.vm

NAME = "layered-disk"
# On a small host the first layers would make room for the last.
CONFIG = VMConfig(disk_mib=256, layers_mib=4096, layers_disk_mib=1024)
# What is read is read from the disk, and not from memory.
SUMS = "sync; echo 3 > /proc/sys/vm/drop_caches; cd /scratch; cksum one two three"
STEPS = [
    {"run": "head -c 3M /dev/urandom > /scratch/one; cksum < /scratch/one > /root/sum; sync"},
    {"run": "head -c 8M /dev/urandom > /scratch/two; cksum < /scratch/two >> /root/sum; sync"},
    {"run": "echo first > /scratch/three"},
]


@pytest.fixture(autouse=True)
async def every_step_is_kept(instance, monkeypatch):
    for name in ("LAYER_WORTH_S", "LAST_WORTH_S"):
        monkeypatch.setattr(making, name, 0.0)
    yield
    if NAME in await Template.list():
        await remove_template(NAME, places=instance)
    await LayerStore.of(instance).remove_all()
    assert left_of(instance.runtime) == []
    assert disks_of(instance) == {}


def disks_of(instance) -> dict[str, Path]:
    """The disks that something needs, or needed, of layers and of our template: each with its file."""
    ours = tuple(f"{folder}/" for folder in (instance.layers, instance.templates / NAME))
    links = [link for link in instance.disks.glob("*/users/*") if str(link.readlink()).startswith(ours)]
    return {link.parent.parent.name: link.parent.parent / "disk" for link in links}


async def make(steps: list[dict], **options) -> tuple[Template, list[str]]:
    told: list[str] = []
    asked = {"config": CONFIG, **options}
    template = await Template.build(NAME, steps=steps, progress=lambda each: told.append(each.step), **asked)
    return template, [step for step in told if step.startswith(("going on", "booting", "running"))]


async def check_disk(template: Template, last: str) -> None:
    async with await template.fork() as vm:
        sums = [line.split() for line in (await vm.shell(SUMS, check=True)).stdout.splitlines()]
        assert [f"{each[0]} {each[1]}" for each in sums[:2]] == (await vm.read_file("/root/sum")).decode().splitlines()
        assert await vm.read_file("/scratch/three") == last.encode()
        assert "error" not in (await vm.shell("dmesg | grep -i 'ext4\\|vd[ab]' || true", check=True)).stdout


async def test_the_last_step_is_redone_alone_on_what_was_on_the_disk_and_layers_go_while_they_are_used(
    instance, monkeypatch
) -> None:
    await make(STEPS)
    rows = json.loads(vmfork("template", "history", NAME, "--json").check().out)["steps"]
    assert [row["disk_mib"] >= least for row, least in zip(rows, (3, 11, 0), strict=True)] == [True] * 3
    assert (rows[0]["disk_mib"] < rows[1]["disk_mib"], rows[2]["disk_mib"]) == (True, 0)
    real, gone = making.restore_base, []

    async def restore_and_lose(*given, **more):
        base = await real(*given, **more)
        layers = LayerStore.of(instance)
        gone.extend(layer.name for layer in layers.list_all())
        await layers.remove_all()
        return base

    monkeypatch.setattr(making, "restore_base", restore_and_lose)
    template, told = await make([*STEPS[:2], {"run": "echo second > /scratch/three"}], replace=True)
    assert (told[0].startswith("going on behind step 2"), told[1:]) == (
        True,
        ["running 'echo second > /scratch/three'"],
    )
    assert (len(gone), LayerStore.of(instance).list_all()) == (3, [])
    await check_disk(template, "second\n")
    DiskStore(instance.disks).sweep()
    assert list(disks_of(instance)) == [template.manifest.disk_sha256]  # which is nobody else's


@pytest.mark.slow
async def test_without_layers_all_is_done_again_and_where_disks_may_take_nothing_none_is_kept(instance) -> None:
    await make(STEPS)
    for path in disks_of(instance).values():
        path.unlink()  # somebody tidied up
    template, told = await make(STEPS, replace=True)
    assert [step.partition(" ")[0] for step in told] == ["booting", "running", "running", "running"]
    await check_disk(template, "first\n")
    await LayerStore.of(instance).remove_all()
    few = replace(CONFIG, layers_disk_mib=6)
    template, _ = await make(STEPS, config=few, replace=True)
    kept = LayerStore.of(instance).list_all()
    assert 0 < sum(layer.disk_mib for layer in kept) <= 6  # that of the second step takes 11
    assert template.manifest.steps[1].layer == ""
    await check_disk(template, "first\n")


@pytest.mark.slow
@pytest.mark.needs("root")
async def test_a_layer_whose_disk_finds_no_space_on_the_host_is_not_kept_and_the_build_goes_on(instance) -> None:
    steps = [
        {"run": "head -c 8M /dev/urandom > /scratch/one; sync"},
        {"run": "head -c 6M /dev/urandom > /scratch/two; sync"},
        {"run": "rm /scratch/one /scratch/two; sync; fstrim /scratch 2>/dev/null; echo here > /scratch/three; sync"},
    ]
    # For what the machine has written, 14 MiB at most, and the first layer's 8; not for the 14 of the second.
    mount_tmpfs(instance.disks, size_bytes=32 * MIB)
    try:
        template, _ = await make(steps)
        assert [bool(step.layer) for step in template.manifest.steps] == [True, False, False]
        async with await template.fork() as vm:
            assert (await vm.shell("ls /scratch; cat /scratch/three", check=True)).stdout == "lost+found\nthree\nhere\n"
        await remove_template(NAME, places=instance)
        await LayerStore.of(instance).remove_all()
        assert [path.name for path in instance.disks.iterdir()] == ["lock"]
    finally:
        unmount(instance.disks)


# It kills itself while the disk of the second layer that it keeps, that of the first step, is copied.
KILLED = """
import os, signal, vmfork
from vmfork.config import VMConfig
from vmfork.hypervisor.qemu import scratch
from vmfork.template import making
making.LAYER_WORTH_S = making.LAST_WORTH_S = 0.0
real, copies = scratch.finish, []
async def finish(monitor):
    copies.append(monitor)
    if len(copies) == 2:
        links = filter(os.path.exists, map("/proc/self/fd/{{}}".format, range(3, 200)))
        open_files = {{os.readlink(link) for link in links}}
        print(*(path for path in open_files if path.endswith("/disk")), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    await real(monitor)
scratch.finish = finish
vmfork.Template.build({name!r}, VMConfig(disk_mib={disk_mib}), steps={steps!r})
"""


@pytest.mark.slow
async def test_a_build_that_is_killed_while_it_copies_the_disk_leaves_whole_layers_alone(instance) -> None:
    script = KILLED.format(name=NAME, disk_mib=CONFIG.disk_mib, steps=STEPS)
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, timeout=180, env={**os.environ}, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    begun = [Path(path) for path in done.stdout.decode().split()]
    assert [path.exists() for path in begun] == [True, True]  # of the template, and of the layer
    end = time.monotonic() + 60  # its machine ends a moment after it
    while any(path.exists() for path in begun):
        assert time.monotonic() < end
        vmfork("gc").check()
    layers = TemplateStore(instance.layers)
    (boot,) = layers.list_names()
    sha256 = layers.verify(boot).disk_sha256
    DiskStore(instance.disks).verify(sha256, image="default")
    assert list(disks_of(instance)) == [sha256]
    template, told = await make(STEPS)
    assert told[0] == "going on behind the boot"
    await check_disk(template, "first\n")
