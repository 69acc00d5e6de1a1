"""A real QEMU that was taken over: a debugger on it stands for the guest's code, and tries what such a one would.

`tests/unit/hypervisor/test_escape.py` tries more acts, at each level, with a program in QEMU's place. Here are QEMU's
own descriptors, its own sandbox beside the filter, its libraries and its threads.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rules.capabilities import need
from tests.vm.debugger import Debugged, debugged
from vmfork.aio import Template
from vmfork.config import VMConfig

if TYPE_CHECKING:
    from vmfork.aio import VM

pytestmark = [pytest.mark.vm, pytest.mark.qemu]

AT_CWD = -100
SEIZE = 0x4206
# What the kernel answers where an act is refused, and where what it is aimed at is not to be seen.
REFUSED = {-number for number in (errno.EPERM, errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOENT, errno.ENOSYS)}
# Of a user's own QEMU, where neither namespaces nor Landlock can be had, the filter leaves reading.
READS = {"shadow opened", "owner's environment read", "owner's memory read", "sibling's memory read"}
PAGE = 4096


def find_template_fd(pid: int) -> tuple[int, str]:
    """The descriptor of the template's memory that a fork's QEMU has, and the file."""
    paths = {int(fd.name): os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    return next((number, path) for number, path in paths.items() if path.endswith("/memory"))


def try_all(qemu: Debugged, *, owner: int, sibling: int, template: tuple[int, str], made: str) -> dict[str, int]:
    """What the kernel answered to each act."""

    def opened(path: str, flags: int) -> int:
        return qemu.call("openat", AT_CWD, path.encode(), flags, 0o666)

    def traced(pid: int) -> int:
        return qemu.call("ptrace", SEIZE, pid, 0, 0)

    fd, path = template
    answers = {
        "file made": opened(made, os.O_CREAT | os.O_WRONLY),
        "shadow opened": opened("/etc/shadow", os.O_RDONLY),
        "owner's environment read": opened(f"/proc/{owner}/environ", os.O_RDONLY),
        "template opened again": opened(f"/proc/self/fd/{fd}", os.O_RDWR),
        "template opened by name": opened(path, os.O_RDWR),
        # No byte is written where it may be done: what counts is whether the descriptor is good for it.
        "template written": qemu.call("pwrite64", fd, b"escaped", 0, 0),
        "template mapped for writing": qemu.call("mmap", 0, PAGE, 3, 1, fd, 0),
    }
    for name, pid in (("owner", owner), ("sibling", sibling)):
        answers[f"{name}'s memory read"] = opened(f"/proc/{pid}/mem", os.O_RDONLY)
        answers[f"{name}'s memory opened"] = opened(f"/proc/{pid}/mem", os.O_RDWR)
        answers[f"{name} signalled"] = qemu.call("kill", pid, 0)
    return answers


async def take_over(vm: VM, sibling: VM, made: str) -> dict[str, int]:
    with debugged(vm.pid) as qemu:
        return try_all(qemu, owner=os.getpid(), sibling=sibling.pid, template=find_template_fd(vm.pid), made=made)


@pytest.fixture
def made():
    path = f"/etc/vmfork-escaped-{os.getpid()}"
    yield path
    Path(path).unlink(missing_ok=True)


async def test_a_qemu_that_was_taken_over_reaches_nothing_and_its_machine_runs_on(template, made) -> None:
    async with await template.fork() as vm, await template.fork() as sibling:
        need("isolation", found=vm.isolation.level != "none")
        answers = await take_over(vm, sibling, made)
        left = READS if vm.isolation.parts == ("filter",) else set()
        assert {act: answer for act, answer in answers.items() if answer not in REFUSED and act not in left} == {}
        assert not Path(made).exists()
        assert (await vm.exec(["true"])).exit_code == 0
        assert (await sibling.exec(["true"])).exit_code == 0


@pytest.mark.parametrize("act", ["trace", "read-memory"])
async def test_one_that_reaches_for_its_owner_is_refused_or_ended(template, act) -> None:
    """QEMU's own sandbox ends it for some calls before the filter could refuse them."""
    async with await template.fork() as vm:
        need("isolation", found=vm.isolation.level != "none")
        here = struct.pack("QQ", 0, 8)
        try:
            with debugged(vm.pid) as qemu:
                call = ("ptrace", SEIZE, os.getpid(), 0, 0)
                if act == "read-memory":
                    call = ("process_vm_readv", os.getpid(), here, 1, here, 1, 0)
                assert qemu.call(*call) in REFUSED
        except ProcessLookupError:
            assert await vm.wait() == -signal.SIGSYS


async def test_uncontained_it_would_have_done_all_of_it(template_name, tmp_path) -> None:
    """Else the tests above would show nothing: the acts are real, and it is the isolation that refuses them."""
    template = await Template.open(template_name, config=VMConfig(isolation="off"))
    async with await template.fork() as vm, await template.fork() as sibling:
        answers = await take_over(vm, sibling, str(tmp_path / "made"))
    # What a user may not do anyway, and what QEMU >= 8.2 does itself: it opens RAM for reading, and can open it again.
    never = {"shadow opened"} if os.geteuid() else set()
    own = {"template written", "template mapped for writing"}
    assert {act for act, answer in answers.items() if answer < 0} - own == never
    assert (tmp_path / "made").exists()
