"""A program's terminal: what is typed, what is shown, its size, its end."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from tests.unit.guest.test_exec import gone
from vmfork.agent.client import AgentClient
from vmfork.errors import ConfigError, GuestError
from vmfork.wire.command import Command, Window
from vmfork.wire.frame import Channel, Opcode, encode_request

if TYPE_CHECKING:
    from vmfork.agent.process import GuestProcess

LIMIT_S = 30
SIZE = Window(24, 80)


class Screen:
    """What a program shows, as far as it was waited for."""

    def __init__(self, process: GuestProcess) -> None:
        self.process = process
        self.shown = b""
        self._pieces = process.output()

    async def wait_for(self, text: bytes) -> bytes:
        """What was shown up to that text, which was shown."""
        async with asyncio.timeout(LIMIT_S):
            while text not in self.shown:
                channel, data = await anext(self._pieces)
                assert channel is Channel.STDOUT
                self.shown += data
        seen, _, self.shown = self.shown.partition(text)
        return seen

    async def rest(self) -> bytes:
        async with asyncio.timeout(LIMIT_S):
            return self.shown + b"".join([data async for _, data in self._pieces])

    async def type(self, text: bytes) -> None:
        await self.process.write_stdin(text)


async def start(agent: AgentClient, *argv: str, window: Window = SIZE, **options) -> Screen:
    return Screen(await agent.start_exec(Command(argv, window=window, **options)))


async def shown(agent: AgentClient, *argv: str, **options) -> tuple[str, int]:
    screen = await start(agent, *argv, **options)
    text = await screen.rest()
    return text.decode(), (await screen.process.wait()).exit_code


async def test_it_is_the_terminal_that_controls_the_session(agent) -> None:
    script = "tty; echo to /dev/tty > /dev/tty; ps -o tpgid= -p $$ | tr -d ' '; echo $$; echo $TERM; [ -t 0 -a -t 2 ]"
    text, status = await shown(agent, "sh", "-c", script)
    name, told, group, pid, term = text.split("\r\n")[:5]
    assert name.startswith("/dev/pts/")
    assert (told, group, term, status) == ("to /dev/tty", pid, "xterm-256color", 0)


async def test_what_it_is_called_is_the_callers_to_say(agent) -> None:
    assert await shown(agent, "sh", "-c", "echo $TERM", env={"TERM": "vt100"}) == ("vt100\r\n", 0)


async def test_both_outputs_come_as_one_in_their_order(agent) -> None:
    script = "for i in 1 2 3; do echo out$i; echo err$i >&2; done"
    assert (await shown(agent, "sh", "-c", script))[0].split() == ["out1", "err1", "out2", "err2", "out3", "err3"]


async def test_it_has_a_size_and_is_told_of_another(agent) -> None:
    script = "trap 'stty size; exit' WINCH; stty size; while :; do read line; done"
    async with (screen := await start(agent, "sh", "-c", script, window=Window(31, 97))).process:
        assert await screen.wait_for(b"\r\n") == b"31 97"
        await screen.process.resize(65_535, 1)
        # The shell runs its trap when its read is over.
        await screen.type(b"\n")
        assert b"65535 1" in await screen.rest()


async def test_no_window_has_such_a_size(agent, start_agent) -> None:
    async with (screen := await start(agent, "cat")).process as cat:
        for rows, columns in [(0, 80), (24, -1), (10**9, 80), (24, 65_536)]:
            with pytest.raises(ConfigError, match="whole number from 1 to 65535"):
                await cat.resize(rows, columns)
            with pytest.raises(ConfigError, match="whole number from 1 to 65535"):
                Command(["cat"], window=Window(rows, columns))
        # Asked by a host that does not check.
        for fields in ([b"0", b"80"], [b"24", b"65536"], [b"x", b"80"], [b"24", b"-1"], [b"24", b"9" * 30]):
            exchange = agent._new_exchange()
            request = encode_request(exchange.stream, Opcode.RESIZE, b"%d" % cat._exchange.stream, *fields)
            with pytest.raises(GuestError, match="invalid"):
                await agent._ask(exchange, request, "resizing", LIMIT_S)
        for options in (
            b"terminal",
            b"terminal,rows=0,columns=80",
            b"terminal,rows=24,columns=65536",
            b"memory=" + b"9" * 19,
        ):
            exchange = agent._new_exchange()
            with pytest.raises(GuestError, match="invalid"):
                await agent._ask(
                    exchange,
                    encode_request(exchange.stream, Opcode.EXEC, options, b"", b"", b"1", b"true"),
                    "x",
                    LIMIT_S,
                )
        await screen.type(b"still here\n")
        await screen.wait_for(b"still here")


async def test_a_program_without_a_terminal_has_no_size(agent) -> None:
    async with await agent.start_exec(Command(["sleep", "60"])) as process:
        with pytest.raises(ConfigError, match="has no terminal"):
            await process.resize(24, 80)
        with pytest.raises(GuestError, match="no terminal"):
            await agent.resize(process._exchange.stream, Window(24, 80))
        with pytest.raises(ConfigError, match="is not a signal"):
            await process.kill("NOPE")
        await process.kill("int")
        assert (await process.wait(timeout_s=LIMIT_S)).exit_code == 130
        await process.resize(24, 80) if process._has_terminal else None
    await agent.resize(process._exchange.stream, Window(24, 80))


@pytest.mark.parametrize(("key", "status"), [(b"\x03", 130), (b"\x1c", 131)])
async def test_a_key_is_a_signal_to_the_job_in_the_foreground(agent, key: bytes, status: int) -> None:
    """The shell, which reads commands, stays."""
    async with (shell := await start(agent, "bash", "--norc", "-i", env={"PS1": "$ ", "HISTFILE": ""})).process:
        await shell.wait_for(b"$ ")
        await shell.type(b"sh -c 'echo be''gun; exec sleep 60'\n")
        await shell.wait_for(b"begun")
        await shell.type(key)
        await shell.wait_for(b"$ ")
        await shell.type(b"echo status $?.\n")
        await shell.wait_for(b"status %d." % status)
        await shell.type(b"exit 7\n")
        await shell.rest()
        assert (await shell.process.wait()).exit_code == 7


async def test_a_job_is_stopped_and_goes_on(agent) -> None:
    async with (shell := await start(agent, "bash", "--norc", "-i", env={"PS1": "$ ", "HISTFILE": ""})).process:
        await shell.wait_for(b"$ ")
        await shell.type(b"sh -c 'echo be''gun; exec cat'\n")
        await shell.wait_for(b"begun")
        await shell.type(b"typed\n")
        await shell.wait_for(b"typed\r\ntyped")
        await shell.type(b"\x1a")
        await shell.wait_for(b"Stopped")
        await shell.wait_for(b"$ ")
        await shell.type(b"fg; echo ov''er\n")
        # It repeats the command when it is in the foreground again.
        await shell.wait_for(b"exec cat")
        await shell.type(b"again\n")
        await shell.wait_for(b"again\r\nagain")
        await shell.process.close_stdin()
        await shell.wait_for(b"over")


@pytest.mark.parametrize("typed", [b"", b"a line\n", b"half a line"])
async def test_the_end_of_input_is_typed(agent, typed: bytes) -> None:
    async with (screen := await start(agent, "sh", "-c", "stty -echo; echo ready; cat; echo end")).process:
        await screen.wait_for(b"ready\r\n")
        await screen.type(typed)
        await screen.process.close_stdin()
        assert await screen.rest() == typed.replace(b"\n", b"\r\n") + b"end\r\n"


async def test_all_that_it_shows_arrives_at_the_pace_of_who_reads(agent) -> None:
    """20 MB, and the last of it after the program's end."""
    screen = await start(agent, "sh", "-c", "stty raw; head -c 20000000 /dev/zero; printf end")
    pid = screen.process.pid
    for _ in range(50):  # it writes as much as it may, and stands still
        await agent.ping()
    count = 0
    last = b""
    async for _, data in screen.process.output():
        count += len(data)
        last = (last + data)[-3:]
    assert (count, last) == (20_000_003, b"end")
    gone(pid)


async def test_what_is_typed_waits_until_it_is_read(agent) -> None:
    """A terminal takes 4 KiB; the rest waits, and the agent answers meanwhile."""
    script = "stty raw -echo; echo ready; dd bs=1000 count=1000 iflag=fullblock status=none | md5sum"
    async with (screen := await start(agent, "sh", "-c", script)).process:
        await screen.wait_for(b"ready")
        data = os.urandom(1_000_000)
        typing = asyncio.ensure_future(screen.process.write_stdin(data))
        await agent.ping()
        await typing
        await screen.wait_for(hashlib.md5(data).hexdigest().encode())


async def test_what_runs_on_behind_it_is_not_waited_for(agent, tmp_path) -> None:
    script = f"trap '' HUP; (while :; do echo on; done) & echo $! > {tmp_path}/pid; echo done"
    text, status = await shown(agent, "sh", "-c", script)
    assert ("done\r\n" in text, status) == (True, 0)
    os.kill(int((tmp_path / "pid").read_text()), 9)


@pytest.mark.parametrize("end", ["kill", "close", "client"])
async def test_its_end_takes_the_session_along(start_agent, tmp_path, end: str) -> None:
    running = start_agent()
    async with await AgentClient.open(running.sock.dup()) as client:
        running.sock.close()
        await client.hello(take_over=False)
        script = (
            f"trap '' HUP TERM INT; (trap '' HUP; setsid sleep 60 & echo $! > {tmp_path}/other; wait) & echo up; wait"
        )
        screen = await start(client, "sh", "-m", "-c", script)
        await screen.wait_for(b"up")
        while not (text := (tmp_path / "other").read_text() if (tmp_path / "other").exists() else "").endswith("\n"):
            await client.ping()
        if end == "kill":
            await screen.process.kill("KILL")
            await screen.rest()
        elif end == "close":
            await screen.process.aclose()
    gone(screen.process.pid)
    gone(int(text))


async def test_a_program_that_closes_its_terminal_is_not_hung_up_and_may_open_it_again(agent, tmp_path) -> None:
    """`cat` closes all it has before it ends: it ended by SIGHUP now and then."""
    script = (
        f"tty=$(tty); exec <&- >&- 2>&-; sleep 0.2; touch {tmp_path}/on; echo again > $tty; read line < $tty; exit 6"
    )
    async with (screen := await start(agent, "sh", "-c", script)).process:
        await screen.wait_for(b"again")
        assert (tmp_path / "on").exists()
        await screen.type(b"a line\n")
        await screen.rest()
        assert (await screen.process.wait()).exit_code == 6


async def test_a_hundred_at_once(agent) -> None:
    screens = await asyncio.gather(*(start(agent, "cat") for _ in range(100)))
    for number, screen in enumerate(screens):
        await screen.type(b"%d.\n" % number)
    for number, screen in enumerate(screens):
        await screen.wait_for(b"%d.\r\n%d.\r\n" % (number, number))
        await screen.process.close_stdin()
    assert {(await screen.process.wait()).exit_code for screen in screens} == {0}


async def test_what_a_program_used_is_told(agent) -> None:
    status, _, _ = await agent.exec(Command(["sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"]))
    assert status.cpu_s is not None
    assert 0.001 < status.cpu_s <= status.duration_s * 1.5 + 0.1
    large, _, _ = await agent.exec(Command(["python3", "-c", "x = b'x' * 100_000_000"]))
    assert 100_000_000 < (large.peak_memory_bytes or 0) < 300_000_000
