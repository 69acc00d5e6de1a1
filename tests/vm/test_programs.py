"""Programs of a machine: their terminals, what they may use, what they used."""

from __future__ import annotations

import asyncio

import pytest

import vmfork
from vmfork.errors import ConfigError, ExecError
from vmfork.wire.frame import Channel

# One loop: each leaves the machine that they share as it was.
pytestmark = [pytest.mark.vm, pytest.mark.kvm, pytest.mark.asyncio(loop_scope="module")]

LIMIT_S = 60


async def until(pieces, text: bytes, seen: bytes = b"") -> bytes:
    """What was shown up to `text` and a little more."""
    async with asyncio.timeout(LIMIT_S):
        while text not in seen:
            channel, data = await anext(pieces)
            assert channel is Channel.STDOUT
            seen += data
    return seen


@pytest.mark.qemu
async def test_a_shell_at_a_terminal_has_its_jobs_and_its_size(shared_vm) -> None:
    async with shared_vm.start(["bash", "--norc", "-i"], pty=(31, 97), env={"PS1": "$ "}) as shell:
        pieces = shell.output()
        await until(pieces, b"$ ")
        await shell.write_stdin(b"echo $TERM; stty size; tty\n")
        seen = await until(pieces, b"/dev/pts/")
        assert b"xterm-256color\r\n31 97\r\n" in seen
        await shell.resize(40, 100)
        await shell.write_stdin(b"stty size; sh -c 'echo be''gun; exec cat'\n")
        assert b"40 100\r\n" in await until(pieces, b"begun")
        await shell.write_stdin(b"\x1a")
        seen = await until(pieces, b"Stopped")
        # The line goes on with the job's command, which `fg` shows once more: what is waited for next is that.
        await until(pieces, b"$ ", seen.partition(b"Stopped")[2])
        await shell.write_stdin(b"fg\n")
        await until(pieces, b"exec cat'\r\n")  # the end of the line is written apart
        await shell.write_stdin(b"again\n")
        # The job reads, so it is in the foreground: Ctrl-C reaches it, and not the shell.
        await until(pieces, b"again\r\nagain")
        await shell.write_stdin(b"\x03")
        await until(pieces, b"$ ")
        await shell.write_stdin(b"exit 7\n")
        async for _ in pieces:
            pass
        assert (await shell.wait()).exit_code == 7


async def test_a_terminal_belongs_to_the_user_of_its_program(shared_vm) -> None:
    script = 'stat -c %U "$(tty)"; echo seen > "$(tty)"; id -un'
    async with shared_vm.start(["sh", "-c", script], pty=(24, 80), user="nobody", cwd="/") as process:
        shown = b"".join([data async for _, data in process.output()])
    assert shown == b"nobody\r\nseen\r\nnobody\r\n"


async def test_wrong_windows_and_signals_are_refused_by_name(shared_vm) -> None:
    for window in ((0, 80), (24, -1), (24, 10**9), ("24", "80"), "24x80", (24,)):
        with pytest.raises(ConfigError):
            await shared_vm.start(["cat"], pty=window)
    async with shared_vm.start(["cat"], pty=(24, 80)) as cat:
        with pytest.raises(ConfigError):
            await cat.resize(0, 80)
        for signal in ("NOPE", 0, 65, -1, "", 1.5):
            with pytest.raises(ConfigError):
                await cat.kill(signal)
        await cat.kill("SIGHUP")
        async for _ in cat.output():
            pass
        assert (await cat.wait(timeout_s=LIMIT_S)).exit_code == 129


async def test_a_program_that_wants_more_memory_than_its_limit_is_killed_whole(shared_vm) -> None:
    sleepers = "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done"
    script = f"{sleepers}; python3 -c 'x = bytearray(200_000_000); print(len(x))'; echo on"
    result = await shared_vm.shell(script, limits=vmfork.ProgramLimits(memory_mib=40), timeout_s=LIMIT_S)
    assert (result.exit_code, result.exceeded, result.stdout) == (137, "memory", "")
    assert 30 * 1024 * 1024 < result.peak_memory_bytes <= 41 * 1024 * 1024
    with pytest.raises(ExecError, match="wanted more memory"):
        result.check()
    # It was killed with the others, and may take a moment to be gone.
    await shared_vm.shell("while pgrep -x sleep; do :; done", timeout_s=LIMIT_S, check=True)
    free = await shared_vm.exec(["python3", "-c", "x = bytearray(60_000_000)"], timeout_s=LIMIT_S)
    assert (free.exit_code, free.exceeded) == (0, "")
    assert free.peak_memory_bytes > 60_000_000


async def test_processor_time_is_counted_over_all_that_a_program_starts(shared_vm) -> None:
    script = "while :; do :; done & while :; do :; done & wait"
    result = await shared_vm.shell(script, limits=vmfork.ProgramLimits(cpu_s=0.5), timeout_s=LIMIT_S)
    assert (result.exit_code, result.exceeded) == (137, "cpu")
    assert result.cpu_s >= 0.5
    idle = await shared_vm.shell("sleep 0.2; echo slept", limits=vmfork.ProgramLimits(cpu_s=5), timeout_s=LIMIT_S)
    assert (idle.stdout, idle.exceeded) == ("slept\n", "")
    assert 0 < idle.cpu_s < 5


async def test_no_more_processes_than_allowed_are_started(shared_vm) -> None:
    script = 'for i in 1 2 3 4 5 6 7 8; do sleep 30 & p="$p $!"; done; kill $p; echo end'
    few = await shared_vm.shell(script, limits=vmfork.ProgramLimits(processes=4), timeout_s=LIMIT_S)
    assert "fork" in few.stderr.lower()
    assert few.exceeded == ""
    many = await shared_vm.shell(script, limits=vmfork.ProgramLimits(processes=40), timeout_s=LIMIT_S)
    assert (many.stdout, many.stderr) == ("end\n", "")


async def test_limits_that_are_none_are_refused(shared_vm) -> None:
    for wrong in ({"cpu_s": 0}, {"cpu_s": -1}, {"memory_mib": "a lot"}, {"processes": 0}, {"processes": 10**9}):
        with pytest.raises(ConfigError):
            vmfork.ProgramLimits(**wrong)
    with pytest.raises(ConfigError):
        await shared_vm.exec(["true"], limits={"cpu_s": 1})
