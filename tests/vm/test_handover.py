"""A machine changes its owner: through a handle, an id, a process that dies on either side, at every step."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest

from tests.timing import least_skew_s
from vmfork.aio import VM, VMHandle
from vmfork.config import find_places
from vmfork.errors import Closed, ConfigError, GuestError, StoreBusy, VMForkError, VMNotFound, WrongContext
from vmfork.host.process import ProcessIdentity
from vmfork.machine.base import BaseVM
from vmfork.machine.folder import sweep_vms
from vmfork.machine.request import ForkRequest

pytestmark = [pytest.mark.vm, pytest.mark.kvm]

LIMIT_S = 60


async def wait_ended(pid: int) -> None:
    """The process has ended; reaped by whoever is its parent, or not."""
    async with asyncio.timeout(LIMIT_S):
        while ProcessIdentity.of(pid) is not None:
            await asyncio.sleep(0.01)


def sweep() -> None:
    """What ended machines left is gone. Their keepers end a moment after them, and hold the locks until then."""
    vms, end = find_places().vms, time.monotonic() + LIMIT_S
    while any(vms.iterdir()):
        assert time.monotonic() < end
        sweep_vms(vms)
        time.sleep(0.01)


def python(code: str, *argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *argv], input=stdin, capture_output=True, check=False, timeout=LIMIT_S
    )


@pytest.mark.qemu
async def test_a_machine_is_itself_after_it_changed_hands(any_vm) -> None:
    await any_vm.write_file("/root/kept", "kept")
    await any_vm.shell("setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $! > /root/pid")
    before = (any_vm.id, any_vm.hostname, any_vm.machine_id, any_vm.generation, any_vm.pid, any_vm.template)
    handle = await any_vm.detach(ttl_s=LIMIT_S)
    with pytest.raises(Closed, match=f"VM {handle.id} was detached: whoever has its handle or id can attach it"):
        await any_vm.exec(["true"])
    with pytest.raises(WrongContext, match=f"<VM {handle.id} .*detached> cannot be pickled"):
        pickle.dumps(any_vm)
    assert pickle.loads(pickle.dumps(handle)) == handle
    await any_vm.aclose()  # closes the object, not the machine
    (record,) = [record for record in await VM.list() if record.id == handle.id]
    assert record.owner_pid == 0
    async with await VM.attach(VMHandle.from_json(handle.to_json())) as vm:
        assert (vm.id, vm.hostname, vm.machine_id, vm.generation, vm.pid, vm.template) == before
        assert (vm.adoption, vm.timings, vm.hardware) == (handle.adoption, handle.timings, handle.hardware)
        seen = await vm.shell("cat /root/kept; hostname; kill -0 $(cat /root/pid) && echo runs", timeout_s=30)
        assert seen.stdout.split() == ["kept" + vm.hostname, "runs"]
        assert vm.memory().guest_rss > 0
        (record,) = [record for record in await VM.list() if record.id == vm.id]
        assert record.owner_pid == os.getpid()
        await vm.pause()
        await vm.resume()
    await wait_ended(handle.pid)
    assert not handle.path.exists()


async def test_it_is_found_by_its_id_and_only_while_it_waits(template) -> None:
    vm = await template.fork()
    with pytest.raises(StoreBusy, match=f"process {os.getpid()}"):
        await VM.attach(vm.id)
    await vm.detach(ttl_s=LIMIT_S)
    async with await VM.attach(vm.id) as again:
        assert (await again.exec(["true"])).ok
        with pytest.raises(StoreBusy):
            await VM.attach(vm.id)
    with pytest.raises(VMNotFound, match=vm.id):
        await VM.attach(vm.id)
    with pytest.raises(VMNotFound):
        await VM.attach("../templates")


async def test_a_handle_is_good_for_one_attach(template) -> None:
    vm = await template.fork()
    old = await vm.detach(ttl_s=LIMIT_S)
    async with await VM.attach(old) as vm:
        with pytest.raises(StoreBusy):
            await VM.attach(old)
        new = await vm.detach(ttl_s=LIMIT_S)
        with pytest.raises(VMNotFound, match="earlier time"):
            await VM.attach(old)
        await (await VM.attach(new)).aclose()


async def test_what_runs_under_the_agent_keeps_it_with_its_owner(fork) -> None:
    async with await fork.start(["sleep", "1000"]):
        with pytest.raises(GuestError, match="still runs"):
            await fork.detach()
        assert (await fork.exec(["true"])).ok
    with pytest.raises(ConfigError, match="ttl_s"):
        await fork.detach(ttl_s=-1)
    with pytest.raises(VMForkError):
        await fork.exec(["sleep", "1000"], timeout_s=0.2)  # killed, and its end told a moment later
    async with await VM.attach(await fork.detach(ttl_s=LIMIT_S)) as vm:
        assert (await vm.exec(["true"])).ok


@pytest.mark.qemu
async def test_a_paused_machine_changes_hands_paused(template) -> None:
    vm = await template.fork()
    await vm.pause()
    async with await VM.attach(await vm.detach(ttl_s=LIMIT_S)) as vm:
        assert "paused" in repr(vm)
        await vm.resume()
        assert (await vm.exec(["true"], timeout_s=30)).ok
        assert await least_skew_s(vm) <= 0.020


async def test_a_machine_nobody_takes_ends_and_the_next_sweep_removes_what_is_left(template) -> None:
    vm = await template.fork()
    handle = await vm.detach(ttl_s=0.3)
    await wait_ended(handle.pid)
    with pytest.raises(VMNotFound):
        await VM.attach(handle)
    assert handle.path.exists()
    sweep()
    assert not handle.path.exists()


async def test_a_machine_that_waits_is_not_swept(template) -> None:
    vm = await template.fork()
    handle = await vm.detach(ttl_s=LIMIT_S)
    assert sweep_vms(find_places().vms) == []
    await (await VM.attach(handle)).aclose()


async def test_another_process_takes_it_and_it_dies_with_that(template) -> None:
    handle = await (await template.fork()).detach(ttl_s=LIMIT_S)
    code = (
        "import os, signal, sys, vmfork\n"
        "vm = vmfork.VM.attach(vmfork.VMHandle.from_json(sys.stdin.buffer.read()))\n"
        "print(vm.exec(['hostname'], timeout_s=30).stdout.strip(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = python(code, stdin=handle.to_json())
    assert done.stdout.decode().split() == [handle.hostname], done.stderr.decode()
    assert done.returncode == -signal.SIGKILL
    await wait_ended(handle.pid)
    sweep()


async def test_of_many_processes_one_gets_it(template) -> None:
    handle = await (await template.fork()).detach(ttl_s=LIMIT_S)
    code = (
        "import sys, vmfork\n"
        "try:\n"
        "    vm = vmfork.VM.attach(vmfork.VMHandle.from_json(sys.stdin.buffer.read()))\n"
        "except (vmfork.StoreBusy, vmfork.VMNotFound) as error:\n"
        "    print(error.code)\n"
        "else:\n"
        "    print(vm.exec(['hostname'], timeout_s=30).stdout.strip())\n"
        "    vm.close()\n"
    )
    told = await asyncio.gather(*(asyncio.to_thread(python, code, stdin=handle.to_json()) for _ in range(4)))
    words = sorted(one.stdout.decode().strip() for one in told)
    assert words.count(handle.hostname) == 1, told
    assert set(words) <= {handle.hostname, "busy", "vm-not-found"}
    await wait_ended(handle.pid)


# The step at which a process is killed. Whoever it was, afterwards there is one owner, or no machine.
OWNER_STEPS = {
    "before": ("vm", False),
    "released": ("line released", False),
    "told": ("handle written", False),
    "parked": ("keeper answered", True),
}


@pytest.mark.parametrize("step", OWNER_STEPS)
async def test_an_owner_killed_while_it_gives_up_leaves_a_machine_to_take_or_none(template_name, step) -> None:
    code = (
        "import asyncio, os, signal, sys\n"
        "from vmfork.aio import Template\n"
        "from vmfork.agent.client import AgentClient\n"
        "from vmfork.host.keeper import KeptProcess\n"
        "from vmfork.machine.folder import VMFolder\n"
        "name, step = sys.argv[1:]\n"
        "def die(*_):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "def after(kind, method):\n"
        "    real = getattr(kind, method)\n"
        "    if asyncio.iscoroutinefunction(real):\n"
        "        async def new(*args, **kw):\n"
        "            await real(*args, **kw)\n"
        "            die()\n"
        "    else:\n"
        "        def new(*args, **kw):\n"
        "            real(*args, **kw)\n"
        "            die()\n"
        "    setattr(kind, method, new)\n"
        "async def main():\n"
        "    vm = await (await Template.open(name)).fork()\n"
        "    print(vm.id, vm.pid, flush=True)\n"
        "    if step == 'before': die()\n"
        "    if step == 'released': after(AgentClient, 'release')\n"
        "    if step == 'told': after(VMFolder, 'write_handle')\n"
        "    if step == 'parked': after(KeptProcess, 'park')\n"
        "    await vm.detach(ttl_s=30)\n"
        "asyncio.run(main())\n"
    )
    done = await asyncio.to_thread(python, code, template_name, step)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    vm_id, pid = done.stdout.decode().split()
    if OWNER_STEPS[step][1]:
        async with await VM.attach(vm_id) as vm:
            assert (await vm.exec(["true"], timeout_s=30)).ok
    await wait_ended(int(pid))
    with pytest.raises(VMNotFound):
        await VM.attach(vm_id)
    sweep()


TAKER_STEPS = ("asked", "confirmed", "owned")


@pytest.mark.parametrize("step", TAKER_STEPS)
async def test_a_taker_killed_while_it_takes_leaves_no_machine(template, step) -> None:
    handle = await (await template.fork()).detach(ttl_s=LIMIT_S)
    code = (
        "import os, signal, sys, vmfork\n"
        "from vmfork.hypervisor.qemu import QemuMachine\n"
        "from vmfork.host.keeper import KeptProcess\n"
        "step = sys.argv[1]\n"
        "def die(*_, **__):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if step == 'asked': QemuMachine.confirm = die\n"
        "real = KeptProcess.confirm\n"
        "if step == 'confirmed': KeptProcess.confirm = lambda self: (real(self), die())\n"
        "vm = vmfork.VM.attach(vmfork.VMHandle.from_json(sys.stdin.buffer.read()))\n"
        "die()\n"
    )
    done = await asyncio.to_thread(lambda: python(code, step, stdin=handle.to_json()))
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    await wait_ended(handle.pid)
    with pytest.raises(VMNotFound):
        await VM.attach(handle)
    sweep()


async def test_a_cancelled_attach_leaves_no_machine(template, monkeypatch) -> None:
    handle = await (await template.fork()).detach(ttl_s=LIMIT_S)

    async def never(line) -> None:
        with line:
            await asyncio.sleep(1000)

    monkeypatch.setattr("vmfork.machine.handover.AgentClient.open", never)
    attaching = asyncio.create_task(VM.attach(handle))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(attaching, 0.5)
    await wait_ended(handle.pid)
    sweep()


async def test_a_machine_that_nobody_is_yet_changes_hands_and_is_adopted_there(template) -> None:
    base = await template._source.fork_base()
    await base.park(timeout_s=LIMIT_S)
    handle = await base.detach(ttl_s=LIMIT_S)
    with pytest.raises(ConfigError, match="no identity"):
        await VM.attach(handle)
    again = await BaseVM.attach(VMHandle.from_json(handle.to_json()))
    await again.check(timeout_s=10)
    async with VM(*await again.adopt(ForkRequest(env={"A": "b"}), timeout_s=LIMIT_S)) as vm:
        seen = await vm.shell("hostname; cat /run/vmfork/generation; echo $A; date +%s", timeout_s=30)
        assert seen.stdout.split()[:3] == [handle.hostname, handle.generation, "b"]
        assert abs(int(seen.stdout.split()[3]) - time.time()) < 5
        with pytest.raises(ConfigError, match="its own"):
            await BaseVM.attach(await vm.detach(ttl_s=LIMIT_S))
        await (await VM.attach(vm.id)).aclose()
