"""A machine belongs to the process and event loop that made it: elsewhere it says so, and dropped it is closed."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import select
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from vmfork.aio import VM, Factory, Template
from vmfork.config import FactoryConfig, find_places
from vmfork.errors import WrongContext
from vmfork.host.process import ProcessIdentity
from vmfork.machine.folder import sweep_vms

pytestmark = pytest.mark.vm


async def forked(name: str) -> VM:
    return await (await Template.open(name)).fork()


def is_gone(pid: int) -> bool:
    return ProcessIdentity.of(pid) is None


def is_reaped(pid: int) -> bool:
    """The process is no zombie either."""
    return not Path(f"/proc/{pid}").exists()


def left_behind() -> list[str]:
    return [path.name for path in find_places().vms.iterdir()]


def test_in_a_second_event_loop_a_machine_says_so_and_closes(template_name) -> None:
    vm = asyncio.run(forked(template_name))

    async def use() -> None:
        for call in (vm.exec(["true"]), vm.read_file("/etc/hostname"), vm.pause(), vm.detach()):
            with pytest.raises(WrongContext, match=f"VM {vm.id} belongs to another event loop that has ended"):
                await asyncio.wait_for(call, 60)

    asyncio.run(use())
    asyncio.run(vm.aclose())
    assert is_gone(vm.pid)
    assert left_behind() == []
    asyncio.run(vm.aclose())


async def test_from_another_thread_s_loop_a_machine_closes_on_its_own(template_name) -> None:
    vm = await forked(template_name)
    await asyncio.to_thread(lambda: asyncio.run(vm.aclose()))
    assert is_gone(vm.pid)
    assert left_behind() == []


def test_a_program_used_in_a_second_event_loop_says_so(template_name) -> None:
    async def start():
        vm = await forked(template_name)
        return vm, await vm.start(["sleep", "60"])

    vm, process = asyncio.run(start())
    for call in (process.wait, process.kill, process.close_stdin):
        with pytest.raises(WrongContext):
            asyncio.run(asyncio.wait_for(call(), 60))
    asyncio.run(vm.aclose())


async def test_a_dropped_machine_is_closed_with_a_warning_that_names_where_it_was_made(template_name) -> None:
    vm = await forked(template_name)
    vm_id, pid, ended = vm.id, vm.pid, os.pidfd_open(vm.pid)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del vm
        gc.collect()
    (told,) = unclosed(caught, f"<VM {vm_id}")
    assert f"made at {__file__}:" in told
    await asyncio.to_thread(wait_readable, ended)
    os.close(ended)
    async with asyncio.timeout(60):
        while left_behind():
            await asyncio.sleep(0.02)
    assert is_gone(pid)


def unclosed(caught, what: str) -> list[str]:
    """The warnings about `what`: others of the collector's may come from anywhere."""
    assert all(w.category is ResourceWarning for w in caught)
    return [text for w in caught if (text := str(w.message)).startswith(f"unclosed {what}")]


def wait_readable(fd: int) -> None:
    assert select.select([fd], [], [], 10)[0]


def test_a_machine_dropped_when_its_loop_has_ended_is_closed(template_name) -> None:
    vm = asyncio.run(forked(template_name))
    vm_id, pid = vm.id, vm.pid
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del vm
        gc.collect()
    assert len(unclosed(caught, f"<VM {vm_id}")) == 1
    assert is_gone(pid)
    assert left_behind() == []


async def test_a_dropped_program_is_ended(fork) -> None:
    process = await fork.start(["sleep", "1000"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del process
        gc.collect()
    (told,) = unclosed(caught, "<GuestProcess")
    assert re.match(r"unclosed <GuestProcess \d+ 'sleep 1000', running>, made at", told)
    async with asyncio.timeout(60):
        while (await fork.shell("pgrep -f 'sleep 100[0]'")).exit_code == 0:
            await asyncio.sleep(0.05)


def test_a_dropped_factory_ends_what_it_keeps(template_name) -> None:
    async def fill() -> int:
        factory = Factory(FactoryConfig(cache=1))
        async with await factory.get_vm():
            pass
        while not (vms := factory.stats().cache.vms):
            await asyncio.sleep(0.05)
        return vms[0].pid

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        pid = asyncio.run(fill())
        gc.collect()
    assert is_reaped(pid)


def test_a_machine_dropped_by_a_task_that_its_loop_cancels_is_closed_and_reaped(template_name) -> None:
    """What a task closes while the loop ends is closed at once: another task for it would never run."""

    async def hold() -> None:
        vm = await forked(template_name)
        pids.append(vm.pid)
        await asyncio.get_running_loop().create_future()

    async def leave_it() -> None:
        task = asyncio.create_task(hold())
        while not pids:
            await asyncio.sleep(0.01)
        tasks.append(task)

    pids, tasks = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(leave_it())
        tasks.clear()
        gc.collect()
    assert is_reaped(pids[0])
    assert left_behind() == []


@pytest.mark.parametrize("turns", range(6))
def test_a_close_that_ends_with_its_loop_reaps(template_name, turns) -> None:
    """However far it came: a machine with a monitor has more to close."""

    async def begin() -> int:
        vm = await forked(template_name)
        await vm.pause()
        closing = asyncio.create_task(vm.aclose())
        for _ in range(turns):
            await asyncio.sleep(0)
        tasks.append(closing)
        return vm.pid

    tasks = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        pid = asyncio.run(begin())
        tasks.clear()
        gc.collect()
    assert is_reaped(pid)
    assert left_behind() == []


PROGRAM = """
import os, sys, warnings
warnings.simplefilter("error", ResourceWarning)
import vmfork
vm = vmfork.Template.open({name!r}).fork()
pid = os.fork()
if pid == 0:
    for call in (lambda: vm.exec(["true"]), vm.pause, lambda: vm.write_file("/x", b"")):
        try:
            call()
        except vmfork.WrongContext as error:
            assert "forked" in str(error), error
        else:
            os._exit(3)
    vm.close()
    with vmfork.Template.open({name!r}).fork() as own:
        assert own.exec(["echo", "hi"]).stdout == "hi\\n"
    del vm
    {leave}
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert vm.exec(["echo", "alive"]).stdout == "alive\\n"
vm.close()
"""


@pytest.mark.parametrize("leave", ["os._exit(0)", "sys.exit(0)"])
def test_a_forked_child_has_machines_of_its_own_and_leaves_the_parents_alone(template_name, leave) -> None:
    done = run_program(PROGRAM.format(name=template_name, leave=leave))
    assert (done.returncode, done.stderr) == (0, "")


def run_program(program: str) -> subprocess.CompletedProcess[str]:
    # What -W takes is the beginning of a message, no pattern: "This process (pid=N) is multi-threaded" (Python 3.12).
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    # A user who may not open /dev/kvm is told that TCG is used, once a process.
    done.stderr = "".join(line for line in done.stderr.splitlines(True) if not line.startswith("note: /dev/kvm"))
    # A process that ends with a machine leaves its folder to the next command, once its keeper has ended.
    end = time.monotonic() + 60
    while left_behind() and time.monotonic() < end:
        sweep_vms(find_places().vms)
        time.sleep(0.02)
    return done


def test_what_needs_no_loop_is_told_in_whatever_thread_it_is_asked(template_name) -> None:
    """`make demo` asks a blocking machine for its memory: it was told that the machine is another event loop's."""
    done = run_program(f"""
import threading, vmfork
with vmfork.Template.open({template_name!r}).fork() as vm:
    told = []
    def ask():
        told.append((vm.memory().rss > 0, vm.id, vm.console_tail() is not None, repr(vm), vm.timings.total_s > 0))
    ask()
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
assert told[0] == told[1] and told[0][0], told
try:
    vm.memory()
except vmfork.Closed:
    pass
else:
    raise AssertionError
""")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_pool_of_forked_workers_runs_machines(template_name) -> None:
    done = run_program(f"""
import multiprocessing, vmfork
def work(number):
    with vmfork.Template.open({template_name!r}).fork() as vm:
        return vm.exec(["echo", str(number)]).stdout
vmfork.Template.list()
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(work, range(3)) == ["0\\n", "1\\n", "2\\n"]
""")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "program",
    [
        "import atexit, contextlib\nstack = contextlib.ExitStack()\natexit.register(stack.close)\n"
        "vm = stack.enter_context(template.fork())\n",
        "import weakref\nclass Box: pass\nbox = Box()\nvm = template.fork()\nweakref.finalize(box, vm.close)\n",
        "def machines():\n    with template.fork() as vm: yield vm\nopen_one = machines()\nvm = next(open_one)\n",
        "vm = template.fork()\n",
    ],
    ids=["atexit", "finalize", "an open generator", "never closed"],
)
def test_a_program_that_ends_with_a_machine_ends(template_name, program) -> None:
    begin = f"import vmfork\ntemplate = vmfork.Template.open({template_name!r})\n"
    done = run_program(begin + program + "print(vm.exec(['echo', 'hi']).stdout, end='', flush=True)\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hi\n", "")


def test_a_listener_that_calls_back_is_told(template_name) -> None:
    done = run_program("""
import vmfork
def listener(event):
    vmfork.Template.list()
try:
    vmfork.VM.boot(progress=listener)
except vmfork.WrongContext as error:
    print("told")
""")
    assert (done.returncode, done.stdout) == (0, "told\n"), done.stderr


def test_blocking_machines_are_dropped_from_any_thread(template_name) -> None:
    done = run_program(f"""
import gc, os, select, threading, warnings
import vmfork
told = []
warnings.showwarning = lambda message, *rest, **more: told.append(str(message))
warnings.simplefilter("always", ResourceWarning)
template = vmfork.Template.open({template_name!r})
def drop():
    vm = template.fork()  # line 8
    pids.append(os.pidfd_open(vm.pid))
pids = []
drop()
thread = threading.Thread(target=drop); thread.start(); thread.join()
gc.collect()
for pid in pids:
    assert select.select([pid], [], [], 10)[0]
assert len([line for line in told if line.startswith("unclosed <VM ") and line.endswith("<string>:9")]) == 2, told
""")
    assert (done.returncode, done.stderr) == (0, "")
