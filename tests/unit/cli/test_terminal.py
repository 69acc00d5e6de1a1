"""Our terminal, lent to a program: a pseudo-terminal, and the agent as a process of this host."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tests.at_terminal import IN_A_SHELL, AtTerminal
from vmfork.cli.terminal import terminal_env
from vmfork.image.recipe import find_agent

# What `vmfork run -it` does once it has a machine.
LEND = f"""
import asyncio, socket, subprocess, sys
from vmfork.agent.client import AgentClient
from vmfork.cli.loop import Interrupted, run_async
from vmfork.cli.terminal import lend_terminal, read_window
from vmfork.wire.command import Command

async def work():
    ours, theirs = socket.socketpair()
    with theirs:
        agent = subprocess.Popen([{str(find_agent())!r}, "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()])
    try:
        async with await AgentClient.open(ours) as client:
            await client.hello(take_over=False)
            async with await client.start_exec(Command(sys.argv[1:], window=read_window())) as process:
                return (await lend_terminal(process)).exit_code
    finally:
        await asyncio.to_thread(agent.wait)

try:
    sys.exit(run_async(work()))
except Interrupted as error:
    print(error)
    sys.exit(error.exit_status)
"""


def lend(*argv: str, **options) -> AtTerminal:
    return AtTerminal(sys.executable, "-c", LEND, *argv, **options)


def test_what_is_typed_and_shown_passes_and_the_terminal_comes_back() -> None:
    with lend("sh", "-c", "stty size; read line; echo got $line; exit 7", rows=31, columns=97) as at:
        at.wait_for("31 97\r\n")
        assert at.is_raw
        at.type("a line\n")
        at.wait_for("got a line\r\n")
        assert (at.end()[0], at.is_as_before) == (7, True)


@pytest.mark.parametrize(("key", "status"), [("\x03", 130), ("\x1c", 131), ("\x04", 0)])
def test_keys_are_the_programs(key: str, status: int) -> None:
    with lend("sh", "-c", "echo up; exec cat") as at:
        at.wait_for("up")
        at.type(key)
        assert (at.end()[0], at.is_as_before) == (status, True)


def test_the_window_is_followed() -> None:
    script = "trap 'stty size; exit' WINCH; echo up; while :; do sleep 0.02; done"
    with lend("sh", "-c", script) as at:
        at.wait_for("up")
        at.resize(40, 100)
        at.wait_for("40 100")
        assert at.end()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_from_elsewhere_gives_the_terminal_back(number: int) -> None:
    with lend("sh", "-c", "echo up; exec sleep 60") as at:
        at.wait_for("up")
        at.process.send_signal(number)
        status, shown = at.end()
        assert (status, at.is_as_before) == (128 + number, True)
        assert "interrupted by" in shown


def test_the_loss_of_the_agent_gives_the_terminal_back() -> None:
    with lend("sh", "-c", "kill -9 $PPID; exec sleep 60") as at:
        end = at.wait_ended()
        assert (end, at.is_as_before) == (1, True)
        assert b"agent is gone" in at.seen


def test_what_stops_us_finds_the_terminal_as_it_was_and_we_go_on() -> None:
    script = "echo up; while [ \"$(stty size)\" != '33 99' ]; do sleep 0.02; done; echo resized; read line; exit 5"
    with AtTerminal(*IN_A_SHELL, sys.executable, "-c", LEND, "sh", "-c", script) as at:
        at.wait_for("job ")
        job = int(at.wait_for("."))
        at.wait_for("up")
        shown = ""
        for _ in range(2):  # it is heard again after it was heard
            os.kill(job, signal.SIGTSTP)
            shown += at.wait_for("stopped, in order: True")
            at.resize(33, 99)
            at.type("fg\n")
            at.wait_raw()
        if "resized" not in shown:
            at.wait_for("resized")
        at.type("on\n")
        assert (at.end()[0], at.is_as_before) == (5, True)


def test_where_nobody_could_continue_us_we_are_not_stopped() -> None:
    """As the leader of a session."""
    with lend("sh", "-c", "echo up; read line; exit 5") as at:
        at.wait_for("up")
        for _ in range(2):
            at.process.send_signal(signal.SIGTSTP)
        at.type("on\r")
        assert (at.end()[0], at.is_as_before) == (5, True)


def test_what_goes_along_is_the_kind_of_terminal_and_the_language(monkeypatch) -> None:
    for name in [name for name in os.environ if name.startswith(("LC_", "LANG", "TERM"))]:
        monkeypatch.delenv(name)
    told = {"TERM": "screen", "LANG": "de_DE.UTF-8", "LC_TIME": "C", "LANGUAGE": "de", "LC_ALL": "", "TERMCAP": "x"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert terminal_env() == {"TERM": "screen", "LANG": "de_DE.UTF-8", "LC_TIME": "C"}
