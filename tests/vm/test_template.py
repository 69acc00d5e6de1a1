"""Templates: what forks share, what they must not, and everything that can be wrong with one."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vm.agents import copy_default_image
from tests.vm.other_user import copy_for_others, find_python_for
from vmfork.aio import Template
from vmfork.config import Instance, VMConfig
from vmfork.errors import (
    ConfigError,
    ExecError,
    HostError,
    StoreBusy,
    TemplateCorrupt,
    TemplateExists,
    TemplateNotFound,
    TemplateStale,
)
from vmfork.host.process import ProcessIdentity
from vmfork.machine.folder import list_records, sweep_vms
from vmfork.store import Manifest, TemplateStore
from vmfork.template.source import Source

pytestmark = [pytest.mark.vm, pytest.mark.kvm]


@pytest.mark.qemu
async def test_forks_are_distinct_and_share_memory(template) -> None:
    vms = await template.fork_many(4)
    try:
        draws = [(await vm.exec(["head", "-c", "64", "/dev/urandom"])).stdout_bytes for vm in vms]
        boot_ids = [(await vm.exec(["cat", "/proc/sys/kernel/random/boot_id"])).stdout for vm in vms]
        assert len(set(draws)) == len(set(boot_ids)) == 4
        assert len({vm.machine_id for vm in vms}) == len({vm.hostname for vm in vms}) == 4
        assert (await vms[0].read_file("/root/marker")) == b"warm\n"
        memory = vms[0].memory()
        assert 0 < memory.guest_private < memory.guest_rss / 2
    finally:
        for vm in vms:
            await vm.aclose()
    await template.verify()  # what forks wrote is not in the template


async def test_the_environment_of_one_fork_does_not_reach_the_next(template) -> None:
    async with await template.fork(env={"SECRET": "x"}) as vm:
        assert (await vm.shell("echo $SECRET")).stdout == "x\n"
    async with await template.fork() as vm:
        assert (await vm.shell("echo $SECRET")).stdout == "\n"


@pytest.fixture
async def own(template_name):
    """A template of this test's own, and its folder."""
    built = await Template.build("own", VMConfig())
    store = TemplateStore(Instance().places.templates)
    yield built, store.folder / "own" / built.generation
    await store.remove("own")


def enforced_fields(manifest: Manifest) -> list[tuple[str, object, dict[str, object]]]:
    """Each field that every opening compares with this host, another value of it, and the change that gives it that."""
    traits = ("qemu.version", "machine", "image.kernel", "image.initramfs")
    # The emulator is asked for its version where the file is another than at the freeze.
    return [
        *(
            (trait, "another", {"traits": {**manifest.traits, trait: "another"}, "qemu_stamp": "another"})
            for trait in traits
        ),
        ("format", "another", {"format": "another"}),
        ("host.boot_id", "another", {"host_boot_id": "another"}),
        ("agent.protocol", 1_000_000, {"agent_protocol": 1_000_000}),
    ]


async def test_damage_is_named_and_nothing_is_started(own, instance, tmp_path) -> None:
    built, folder = own
    state = (folder / "state").read_bytes()
    (folder / "state").write_bytes(state[:-100])
    with pytest.raises(TemplateCorrupt, match="state"):
        await built.fork()
    (folder / "state").write_bytes(state[:-1] + bytes([state[-1] ^ 1]))
    with pytest.raises(TemplateCorrupt, match="state"):
        await Template.open("own")
    (folder / "state").write_bytes(state)
    os.truncate(folder / "memory", 257 << 20)
    with pytest.raises(TemplateCorrupt, match="memory"):
        await built.fork()
    os.truncate(folder / "memory", 256 << 20)
    manifest = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(manifest.replace(b'"cpus": 1', b'"cpus": 2'))
    with pytest.raises(TemplateCorrupt, match="manifest"):
        await Template.open("own")
    for field, other, change in enforced_fields(built.manifest):
        (folder / "manifest.json").write_bytes(replace(built.manifest, **change).to_json())
        with pytest.raises(TemplateStale) as stale:
            await Template.open("own")
        assert (stale.value.field, stale.value.have) == (field, other)
        assert stale.value.want not in (other, None)
        assert "replace=True" in stale.value.hint
    for field in ("image", "kernel_args", "cpu_model", "reseed", "aslr"):
        others = {"reseed": "agent", "aslr": "off" if built.manifest.traits["aslr"] == "on" else "on"}
        wanted = replace(VMConfig(), **{field: others.get(field, "another")})
        with pytest.raises(TemplateStale) as stale:
            built._source.check_config(wanted)
        assert stale.value.field == field
    (folder / "manifest.json").write_bytes(manifest)
    # The emulator is replaced after the template was opened.
    upgraded = tmp_path / "qemu"
    upgraded.write_text("#!/bin/sh\necho 'QEMU emulator version 9.9.9'\n")
    upgraded.chmod(0o755)
    later = Template(Source(built.manifest, VMConfig(qemu=str(upgraded)), Instance()))
    with pytest.raises(TemplateStale) as stale:
        await later.fork()
    assert (stale.value.field, stale.value.want) == ("qemu.version", "9.9.9")
    assert list_records(instance.vms) == []
    async with await built.fork() as vm:
        assert (await vm.exec(["true"])).ok
        # Removed while a fork runs: the fork goes on, no mount is left. The fixture removes it again, from scratch.
        await built.remove()
        assert (await vm.exec(["true"])).ok
        assert str(folder) not in Path("/proc/mounts").read_text()
    with pytest.raises(TemplateNotFound):
        await built.fork()
    await Template.build("own", VMConfig())


async def test_bad_builds_leave_nothing(template, instance) -> None:
    before = await Template.list()
    with pytest.raises(TemplateNotFound):
        await Template.open("nowhere")
    with pytest.raises(TemplateExists):
        await Template.build(template.name)
    with pytest.raises(ExecError) as failed:
        await Template.build("bad", warm_up=["echo broken >&2; exit 9"])
    assert b"broken" in failed.value.stderr
    with pytest.raises(ConfigError, match="too little"):
        await Template.build("bad", VMConfig(memory_mib=96))
    with pytest.raises(HostError, match="not enough memory"):
        await Template.build("bad", VMConfig(memory_mib=1 << 22))
    with pytest.raises(ConfigError):
        await Template.build("bad", VMConfig(qemu="/nonexistent"))
    if template.hardware.accel == "tcg":
        with pytest.raises(HostError, match="KVM"):
            await Template.build("bad", VMConfig(accel="kvm"))
    building = asyncio.ensure_future(Template.build("bad", VMConfig()))
    while not list_records(instance.vms):
        await asyncio.sleep(0.05)
    with pytest.raises(StoreBusy):
        await Template.build("bad", VMConfig())
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert await Template.list() == before
    assert list_records(instance.vms) == []
    assert str(instance.templates / "bad") not in Path("/proc/mounts").read_text()


OWNER = """
import asyncio, sys
from vmfork.aio import Template
async def main():
    vm = await (await Template.open(sys.argv[1])).fork()
    print(vm.pid, vm.id, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.qemu
async def test_a_machine_dies_with_its_owner(template, instance) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, template.name], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid, vm_id = owner.stdout.readline().split()
    machine = ProcessIdentity.of(int(pid))
    assert machine is not None
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    end, swept = time.monotonic() + 60, []
    while not swept and time.monotonic() < end:  # its keeper ends last
        await asyncio.sleep(0.02)
        swept = sweep_vms(instance.vms)
    assert swept == [vm_id]
    assert not machine.is_alive()


AS_ORDINARY_USER = """
import asyncio, os
from vmfork.aio import Template, VMConfig
async def main():
    built = await Template.build("mine", VMConfig())
    async with await built.fork() as vm:
        (child,) = await vm.fork()
        async with child:
            word = (await child.exec(["echo", "ok"])).stdout.strip()
    await built.remove()
    print(os.getuid(), word)
asyncio.run(main())
"""


@pytest.mark.qemu
@pytest.mark.needs("root")
def test_an_ordinary_user_builds_and_forks(template_name, instance) -> None:
    uid = 65533
    shared = Path(f"/dev/shm/vmfork-user-{os.getpid()}")
    shared.mkdir()
    env = {
        **os.environ,
        "HOME": str(shared),
        "VMFORK_HOME": str(shared / "home"),
        "VMFORK_RUNTIME_DIR": str(shared / "run"),
        "PYTHONPATH": str(shared / "python"),
    }
    try:
        copy_default_image(instance, shared / "home" / "images")
        copy_for_others(shared / "python")
        subprocess.run(["chown", "-R", f"{uid}:{uid}", shared], check=True)
        done = subprocess.run(
            [find_python_for(uid, env), "-c", AS_ORDINARY_USER],
            user=uid,
            group=uid,
            extra_groups=[],
            env=env,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        left = [path.name for path in shared.glob("run/vms/*")]
    finally:
        shutil.rmtree(shared)
    assert (done.returncode, done.stdout, left) == (0, "65533 ok\n", []), done.stderr
