"""One QEMU process, the real one: started, paused, saved, restored, killed, refused."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny_kernel import GREETING
from vmfork.errors import Closed, HostError, VMForkError
from vmfork.hypervisor.base import ForkedRAM, Restore, SharedRAM
from vmfork.hypervisor.qemu.machine import AGENT_SOCKET, QemuMachine

HELLO = GREETING.decode()
DOTS = "." * 8  # the firmware prints three of its own


@pytest.fixture
def open_file(tmp_path):
    """Descriptors of files, closed in the end."""
    opened: list[int] = []

    def open_file(name: str, *, flags: int = os.O_RDWR | os.O_CREAT, size: int | None = None) -> int:
        fd = os.open(tmp_path / name, flags | os.O_CLOEXEC, 0o600)
        opened.append(fd)
        if size is not None:
            os.truncate(fd, size)
        return fd

    yield open_file
    for fd in opened:
        os.close(fd)


async def status(machine: QemuMachine) -> str:
    return (await (await machine._get_monitor()).execute("query-status"))["status"]


async def test_a_machine_boots_and_can_be_watched(start, folder, until) -> None:
    machine = start()
    assert machine.exit_code is None
    assert machine.argv[0].endswith("qemu-system-x86_64")
    await until(lambda: HELLO in machine.console_tail())
    await until(lambda: HELLO in (folder / "console.log").read_bytes().decode())
    assert len(machine.console_tail()) <= 4096
    assert machine.log_tail() == ""
    with machine.connect_agent() as agent:
        assert agent.getpeername() == str(folder / AGENT_SOCKET)


async def test_pause_and_resume(start, until) -> None:
    machine = start()
    await until(lambda: DOTS in machine.console_tail())
    await machine.pause()
    assert await status(machine) == "paused"
    still = machine.console_tail()
    await machine.pause()  # again changes nothing
    assert machine.console_tail() == still
    await machine.resume()
    assert await status(machine) == "running"
    await until(lambda: machine.console_tail() != still)


async def test_calls_at_the_same_time_share_one_monitor(start) -> None:
    machine = start()
    async with asyncio.timeout(15):
        await asyncio.gather(machine.pause(), machine.pause(), status(machine))
    assert await status(machine) == "paused"


async def test_a_saved_machine_is_restored_on_private_pages(start, open_file, tmp_path, until) -> None:
    memory = open_file("memory", size=64 << 20)
    origin = start(ram=SharedRAM(memory))
    await until(lambda: DOTS in origin.console_tail())
    await origin.pause()
    await origin.save_state(tmp_path / "state")
    assert await status(origin) == "paused"
    assert 10_000 < (tmp_path / "state").stat().st_size < 200_000
    await origin.aclose()
    before = os.pread(memory, 64 << 20, 0)
    forks = [
        start(
            folder=new_folder(tmp_path / f"fork-{number}"),
            ram=ForkedRAM(memory),
            start=Restore(open_file("state", flags=os.O_RDONLY)),
            generation_id=f"{number}" * 8 + "-0000-0000-0000-000000000000",
        )
        for number in (1, 2)
    ]
    for fork in forks:
        await until(lambda fork=fork: fork.console_tail().startswith(DOTS))
        assert await status(fork) == "running"
        assert HELLO not in fork.console_tail()
    assert os.pread(memory, 64 << 20, 0) == before


async def test_state_cannot_be_saved_where_there_is_no_folder(start, tmp_path) -> None:
    machine = start()
    await machine.pause()
    with pytest.raises(HostError, match=r"cannot write device state to .*nowhere/state: No such file"):
        await machine.save_state(tmp_path / "nowhere" / "state")
    assert await status(machine) == "paused"


async def test_state_that_qemu_cannot_write_is_our_error_with_what_it_said(start) -> None:
    machine = start()
    await machine.pause()
    with pytest.raises(HostError, match="xen-save-devices-state") as refused:
        await machine.save_state(Path("/dev/full"))
    assert "-> xen-save-devices-state" in refused.value.details()
    assert await status(machine) == "paused"


async def test_a_command_qemu_does_not_know_is_our_error(start) -> None:
    monitor = await start()._get_monitor()
    with pytest.raises(HostError, match="no-such-command"):
        await monitor.execute("no-such-command", name="x")
    assert (await monitor.execute("query-status"))["running"] is True


async def test_a_refused_option_is_told_with_argv_exit_code_and_log(start, launch) -> None:
    machine = start(hardware=replace(launch.hardware, cpu_model="no-such-cpu"))
    assert await asyncio.wait_for(machine.wait(), 20) == 1
    assert machine.exit_code == 1
    assert "unable to find CPU model 'no-such-cpu'" in machine.log_tail()
    assert "no-such-cpu" in machine.argv
    with pytest.raises(Closed, match="exit status 1"):
        await machine.pause()


@pytest.mark.parametrize("content", [b"", b"not a state file" * 100], ids=["empty", "nonsense"])
async def test_a_bad_state_file_ends_it(start, open_file, tmp_path, content) -> None:
    (tmp_path / "state").write_bytes(content)
    machine = start(
        ram=ForkedRAM(open_file("memory", size=64 << 20)), start=Restore(open_file("state", flags=os.O_RDONLY))
    )
    assert await asyncio.wait_for(machine.wait(), 20) == 1
    assert "load of migration failed" in machine.log_tail()


async def test_ram_of_another_size_ends_it(start, open_file) -> None:
    machine = start(ram=SharedRAM(open_file("memory", size=1 << 20)))
    assert await asyncio.wait_for(machine.wait(), 20) == 1
    assert "backing store size" in machine.log_tail()


async def test_a_killed_machine_is_noticed_by_event(start) -> None:
    machine = start()
    seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    machine.on_exit(seen.set_result)
    await machine.pause()
    os.kill(machine.identity.pid, signal.SIGKILL)
    assert await asyncio.wait_for(seen, 60) == -signal.SIGKILL
    assert machine.exit_code == -signal.SIGKILL
    with pytest.raises(Closed):
        await machine.resume()


async def test_a_machine_killed_under_a_command_is_our_error(start) -> None:
    machine = start()
    monitor = await machine._get_monitor()
    os.kill(machine.identity.pid, signal.SIGSTOP)
    command = asyncio.ensure_future(monitor.execute("query-status"))
    while not monitor.transcript:
        await asyncio.sleep(0)
    os.kill(machine.identity.pid, signal.SIGKILL)
    with pytest.raises(VMForkError):
        await asyncio.wait_for(command, 60)


async def test_cancelling_what_waits_for_the_monitor_leaves_it_usable(start) -> None:
    machine = start()
    os.kill(machine.identity.pid, signal.SIGSTOP)
    pausing = asyncio.ensure_future(machine.pause())
    await asyncio.sleep(0)
    pausing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pausing
    os.kill(machine.identity.pid, signal.SIGCONT)
    async with asyncio.timeout(15):
        await machine.pause()
    assert await status(machine) == "paused"


async def test_closing_again_does_nothing(start, folder) -> None:
    machine = start()
    await machine.aclose()
    await machine.aclose()
    assert machine.exit_code == -signal.SIGKILL
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".sock") == []


async def test_an_emulator_that_cannot_be_started_leaves_nothing(binary, launch, tmp_path) -> None:
    gone = replace(binary, path=tmp_path / "gone")
    machine = QemuMachine.start(gone, replace(launch, folder=new_folder(tmp_path / "another")))
    assert await asyncio.wait_for(machine.wait(), 60) == 127
    assert "gone" in machine.log_tail()
    await machine.aclose()


def new_folder(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path


async def test_a_machine_that_ended_at_once_still_gives_a_connection(start, launch) -> None:
    machine = start(hardware=replace(launch.hardware, cpu_model="no-such-cpu"))
    await asyncio.wait_for(machine.wait(), 20)
    with machine.connect_agent() as agent, pytest.raises(ConnectionResetError):
        agent.recv(1)
    with pytest.raises(HostError, match="cannot connect"):
        machine.connect_agent()
