"""A guest is the Linux that programs expect: streams, names, limits, a root that tells its size and can be left."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.timing import held_time, wait_none
from vmfork.aio import Template
from vmfork.config import VMConfig
from vmfork.errors import DeadlineExceeded, GuestError, GuestFileError, MachineEnded
from vmfork.machine import ending

pytestmark = pytest.mark.vm
# Of those who leave the machine that they share as it was.
in_one_loop = pytest.mark.asyncio(loop_scope="module")

LIMIT_S = 60


async def sh(vm, script: str, **options) -> str:
    result = await vm.shell(script, timeout_s=LIMIT_S, **options)
    assert (result.exit_code, result.stderr) == (0, ""), result
    return result.stdout


@pytest.mark.qemu
@in_one_loop
async def test_standard_streams_open_for_the_user_a_program_runs_as(shared_vm) -> None:
    script = "echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin"
    for user in ("nobody", "12345", ""):
        result = await shared_vm.shell(script, user=user, input="in\n", timeout_s=LIMIT_S)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "out\nin\n", "err\n")


@in_one_loop
async def test_the_name_is_the_forks_own_everywhere_and_resolves(shared_vm) -> None:
    shown = await sh(shared_vm, "hostname; cat /etc/hostname; grep -c . /etc/hosts; getent hosts localhost $(hostname)")
    own, file, lines, localhost, address = shown.splitlines()
    assert own == file == shared_vm.hostname
    assert "localhost" in localhost
    assert address.split() == ["127.0.1.1", shared_vm.hostname]
    # That of the template went, and what else the file says stays.
    assert int(lines) == 3
    lookup = "import socket; print(socket.gethostbyname(socket.gethostname()), socket.gethostbyname('localhost'))"
    assert (await sh(shared_vm, f'python3 -c "{lookup}"')).split() == ["127.0.1.1", "127.0.0.1"]


async def test_users_need_not_be_known_nor_the_file_of_users_be_there(fork) -> None:
    assert (await sh(fork, "id -u; id -G; echo $HOME", user="12345")).split() == ["12345", "12345", "/"]
    await fork.remove("/etc/passwd")
    assert (await sh(fork, "id -u; id -g; echo $HOME", user="0")).split() == ["0", "0", "/root"]
    assert (await sh(fork, "id -u; echo $HOME", user="root")).split() == ["0", "/root"]
    with pytest.raises(GuestError, match="no user"):
        await fork.exec(["true"], user="nobody", timeout_s=LIMIT_S)


@in_one_loop
async def test_passwords_are_where_a_debian_has_them(shared_vm) -> None:
    """Also without the package `passwd`, whose scripts make these files: adduser, chpasswd and sudo look for them."""
    shown = await sh(shared_vm, "stat -c '%a %U:%G %n' /etc/passwd /etc/group /etc/shadow /etc/gshadow /etc/sub?id")
    assert shown.splitlines() == [
        *("644 root:root /etc/passwd", "644 root:root /etc/group"),
        *("640 root:shadow /etc/shadow", "640 root:shadow /etc/gshadow"),
        *("644 root:root /etc/subgid", "644 root:root /etc/subuid"),
    ]
    assert (await sh(shared_vm, "getent passwd root; getent shadow root")).split() == [
        *("root:x:0:0:root:/root:/bin/bash", "root:*:20309:0:99999:7:::")
    ]
    script = "for f in passwd shadow; do cut -d: -f1 /etc/$f > /tmp/$f; done; cmp /tmp/passwd /tmp/shadow; rm /tmp/*"
    assert await sh(shared_vm, script) == ""
    denied = await shared_vm.exec(["cat", "/etc/shadow"], user="nobody", timeout_s=LIMIT_S)
    assert "Permission denied" in denied.stderr


@in_one_loop
async def test_limits_are_those_of_a_debian(shared_vm) -> None:
    shown = await sh(shared_vm, "ulimit -n; ulimit -Hn; ulimit -c; ulimit -s; ulimit -p", user="nobody")
    *fixed, processes = shown.split()
    assert fixed == ["1024", "1048576", "0", "8192"]
    assert int(processes) == int(await sh(shared_vm, "cat /proc/sys/kernel/threads-max")) // 2
    opened = (
        "import os, resource; resource.setrlimit(7, (70_000, 70_000)); print(len([os.dup(0) for _ in range(5000)]))"
    )
    assert await sh(shared_vm, f'python3 -c "{opened}"', user="nobody") == "5000\n"


@in_one_loop
async def test_folders_of_running_programs_are_where_programs_look(shared_vm) -> None:
    script = "touch /run/x.pid; ls /var/run/x.pid; readlink -f /var/run /var/lock; stat -c %a /run/lock"
    assert (await sh(shared_vm, script)).split() == ["/var/run/x.pid", "/run", "/run/lock", "1777"]


@in_one_loop
async def test_the_root_can_be_left_behind(shared_vm) -> None:
    pivot = "mkdir /tmp/r && mount -t tmpfs n /tmp/r && mkdir /tmp/r/old"
    pivot += " && pivot_root /tmp/r /tmp/r/old && echo /old/bin/*sh"
    assert "/old/bin/sh" in await sh(shared_vm, f"unshare -m sh -c '{pivot}'")
    # As containers of ordinary users do, in a user namespace.
    pivot = pivot.replace("/tmp/r", "/tmp/u")
    assert "/old/bin/sh" in await sh(shared_vm, f"unshare -Urm sh -c '{pivot}'", user="nobody")
    assert await sh(shared_vm, "ls /tmp") == "r\nu\n"


@in_one_loop
async def test_the_root_tells_its_free_space_and_says_when_it_is_full(shared_vm) -> None:
    told = int(await sh(shared_vm, "python3 -c 'import shutil; print(shutil.disk_usage(\"/root\").free)'"))
    available = int(await sh(shared_vm, "awk '/MemAvailable/ {print $2 * 1024}' /proc/meminfo"))
    assert 0.5 * available < told <= available
    result = await shared_vm.shell("dd if=/dev/zero of=/root/big bs=1M count=4000", timeout_s=LIMIT_S)
    assert "No space left on device" in result.stderr
    assert await sh(shared_vm, "echo alive; rm /root/big") == "alive\n"


async def test_a_file_larger_than_the_memory_is_refused_with_the_numbers(any_vm) -> None:
    """Wherever files lie in memory, in one piece or in many."""
    for folder in ("/root", "/tmp", "/dev/shm"):
        with pytest.raises(GuestFileError, match="300000000 bytes do not fit, there is room for") as caught:
            await any_vm.write_file(f"{folder}/f", b"x" * 300_000_000)
        assert caught.value.reason == "no-space"
    written = 0
    with pytest.raises(GuestFileError) as caught:
        for number in range(40):
            folder = ("/root", "/tmp", "/dev/shm")[number % 3]
            await any_vm.write_file(f"{folder}/f{number}", b"x" * 10_000_000)
            written += 1
    assert caught.value.reason == "no-space"
    assert written >= 3
    assert await sh(any_vm, "python3 -c 'print(1)'") == "1\n"


@in_one_loop
async def test_a_limit_of_time_ends_all_that_was_started(shared_vm) -> None:
    scripts = (
        "timeout 600 sleep 601; true",
        "setsid sleep 602; true",
        "(setsid setsid sh -c 'while :; do sleep 603 & sleep 603; done' &) ; sleep 604",
        'python3 -c \'import subprocess as s; s.run(["sleep", "605"], start_new_session=True)\'',
    )
    with held_time() as clock:
        running = [asyncio.ensure_future(shared_vm.shell(script, timeout_s=60)) for script in scripts]
        while len((await shared_vm.shell("pgrep -fx 'sleep 60[1-5]'", timeout_s=None)).stdout.split()) < 6:
            pass
        clock.pass_by(60)
        ends = await asyncio.gather(*running, return_exceptions=True)
    assert {type(end) for end in ends} == {DeadlineExceeded}
    await wait_none(shared_vm, "^sleep 60[1-5]")
    # A program with a limit is in a group while it runs, and this is one.
    assert (await sh(shared_vm, "ls -d /sys/fs/cgroup/vmfork-*; cut -d/ -f2 /proc/self/cgroup")).count("vmfork-") == 2


@in_one_loop
async def test_what_a_program_leaves_when_it_ends_by_itself_runs_on(shared_vm) -> None:
    """As a warmed server does, and as it was."""
    await sh(shared_vm, "setsid sleep 700 > /dev/null 2>&1 &")
    assert await sh(shared_vm, "cat /proc/$(pgrep -x sleep)/cgroup; pkill -x sleep") == "0::/\n"


async def test_a_hundred_programs_at_once_and_files_meanwhile(fork) -> None:
    running = [asyncio.ensure_future(fork.exec(["sleep", "3"], timeout_s=LIMIT_S)) for _ in range(100)]
    while not all(task.done() for task in running):
        assert (await fork.read_file("/etc/hostname")).decode().strip() == fork.hostname
        await asyncio.sleep(0.2)
    assert {(await task).exit_code for task in running} == {0}


async def test_a_long_removal_holds_up_nobody(fork) -> None:
    make = "import os\nos.mkdir('/root/m')\nopen('/root/m/x', 'w').close()\n"
    make += "for i in range(20000): os.link('/root/m/x', f'/root/m/{i}')"
    await fork.exec(["python3", "-c", make], check=True, timeout_s=200)
    assert len(await fork.list_dir("/root/m")) == 20_001
    removing = asyncio.ensure_future(fork.remove("/root/m", recursive=True))
    pings = 0
    while not removing.done():
        await fork.ping(timeout_s=LIMIT_S)
        pings += 1
    await removing
    # One comes before it and one after it in any case.
    assert pings >= 5
    with pytest.raises(GuestFileError):
        await fork.stat("/root/m")


HALT = "import ctypes; ctypes.CDLL(None).reboot(0xCDEF0123 - 2**32)"


@pytest.mark.qemu
async def test_a_guest_that_halts_is_told_as_one_that_ended(fork) -> None:
    waiting = asyncio.ensure_future(fork.exec(["sleep", "1000"]))
    with pytest.raises(MachineEnded, match="its guest halted") as ended:
        await fork.exec(["python3", "-c", HALT])
    assert ended.value.halted
    assert "System halted" in ended.value.console_tail
    with pytest.raises(MachineEnded):
        await waiting


async def test_a_guest_that_speaks_of_halting_runs_on(fork) -> None:
    await sh(fork, "echo 'reboot: System halted' > /dev/kmsg; echo 'reboot: System halted' > /dev/console")
    await asyncio.sleep(0.5)
    assert await sh(fork, "echo alive") == "alive\n"


FREEZE = (
    "mkdir /run/groups; mount -t cgroup2 none /run/groups; mkdir /run/groups/still; "
    "echo 1 > /run/groups/still/cgroup.procs; echo 1 > /run/groups/still/cgroup.freeze; "
    "until grep -q 'frozen 1' /run/groups/still/cgroup.events; do :; done; "
    "echo it stands still > /dev/console; sleep 1000"
)


async def test_a_guest_that_says_nothing_is_given_up_without_a_limit_of_the_callers(template) -> None:
    """Its agent stands still, QEMU runs on: nothing else would ever tell. It takes two minutes, which pass at once."""
    async with await template.fork() as vm:
        with held_time() as clock:
            running = asyncio.ensure_future(vm.shell(FREEZE))
            while "it stands still" not in vm._running.machine.console_tail():
                await asyncio.to_thread(time.sleep, 0.02)
            clock.pass_by(ending.SILENCE_LIMIT_S)
            await asyncio.to_thread(time.sleep, 0.02)  # it is asked for a sign of life
            assert not running.done()
            clock.pass_by(ending.SILENCE_LIMIT_S)
            with pytest.raises(GuestError, match="has said nothing for 120 s") as given_up:
                await running
        assert "take another machine" in given_up.value.hint
        with pytest.raises(GuestError):
            await vm.ping()


@pytest.mark.qemu
@pytest.mark.parametrize("command", ["0x4321FEDC", "0x1234567"], ids=["power off", "restart"])
async def test_other_ends_by_a_programs_hand_are_told_too(fork, command) -> None:
    with pytest.raises(MachineEnded, match="exit status 0"):
        await fork.exec(["python3", "-c", f"import ctypes; ctypes.CDLL(None).reboot({command})"])


@pytest.mark.qemu
async def test_file_systems_grow_with_the_memory(instance) -> None:
    config = VMConfig(memory_mib=256, max_memory_mib=1024)
    # One that somebody made larger, with options of its own, stays so.
    template = await Template.build("grows", config, warm_up=["mount -o remount,size=2G,noexec /dev/shm"])
    sizes = "df -m --output=size / /tmp /run /dev/shm | tail -4"
    try:
        async with await template.fork() as small, await template.fork(memory_mib=1024) as grown:
            before = [int(size) for size in (await sh(small, sizes)).split()]
            root, tmp, run, shm = [int(size) for size in (await sh(grown, sizes)).split()]
            total = int(await sh(grown, "awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo"))
            assert root > before[0] + 500
            assert (abs(tmp - total / 2) <= 2, abs(run - total / 2) <= 2, shm) == (True, True, 2048)
            assert "noexec" in await sh(grown, "grep ' /dev/shm ' /proc/mounts")
    finally:
        await template.remove()
