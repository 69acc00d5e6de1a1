"""`vmfork run -it` and `vmfork shell`, at a real pseudo-terminal."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from tests.at_terminal import IN_A_SHELL, AtTerminal
from tests.at_tmux import AtTmux
from tests.vm.cli_runner import COMMAND, left_of, vmfork
from vmfork.aio import VM

pytestmark = pytest.mark.vm

BASH = ("bash", "--norc", "-i")
GIVING = (
    *(sys.executable, "-X", "dev", "-c"),
    """
import asyncio, sys
from vmfork.aio import Template

async def give():
    async with (await Template.open(sys.argv[1])).fork() as vm:
        await vm.exec(["touch", "/root/here"])
        print((await vm.detach(ttl_s=600)).id)

asyncio.run(give())
""",
)


@pytest.fixture(autouse=True)
def nothing_is_left(instance):
    yield
    assert left_of(instance.runtime) == []


@pytest.fixture
def at_bash(template_name):
    """A shell at a terminal, with its prompt."""

    def start(*options: str, **more) -> AtTerminal:
        at = AtTerminal(*COMMAND, "run", "-it", "-t", template_name, "-e", "PS1=$ ", *options, "--", *BASH, **more)
        at.wait_for("$ ")
        return at

    return start


@pytest.mark.qemu
def test_keys_size_and_jobs_are_the_guests(at_bash) -> None:
    with at_bash(rows=31, columns=97, env={"TERM": "screen", "LANG": "C.UTF-8", "LC_TIME": "C"}) as at:
        assert at.is_raw
        at.type("echo $TERM $LANG $LC_TIME; stty size\n")
        at.wait_for("screen C.UTF-8 C\r\n31 97\r\n")
        at.resize(40, 100)
        at.type("trap 'stty size' WINCH; while [ \"$(stty size)\" != '40 100' ]; do sleep 0.01; done; echo re''sized\n")
        at.wait_for("resized")
        at.type("sh -c 'echo be''gun; exec sleep 60'\n")
        at.wait_for("begun")
        at.type("\x03")
        at.wait_for("$ ")
        at.type("echo status $?.\n")
        at.wait_for("status 130.")
        at.type("sh -c 'echo be''gun; exec sleep 60'\n")
        at.wait_for("begun")
        at.type("\x1a")
        at.wait_for("Stopped")
        at.type("kill %1; echo ki''lled\n")
        at.wait_for("killed")
        # A key that comes while a shell changes the modes of its terminal is neither the one thing nor the other.
        at.type("sh -c 'echo be''gun; exec cat > /tmp/typed'; echo st''ored\n")
        at.wait_for("begun")
        at.type("a line\n\x04")
        at.wait_for("stored")
        at.type("sh -c 'echo re''ady; exit 7'\n")
        at.wait_for("ready")
        at.wait_for("$ ")
        at.type("\x04")
        status, _ = at.end()
        assert (status, at.is_as_before) == (7, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_from_elsewhere_ends_it_and_gives_the_terminal_back(at_bash, number) -> None:
    with at_bash() as at:
        assert at.is_raw
        at.process.send_signal(number)
        status, shown = at.end()
        assert (status, at.is_as_before) == (128 + number, True)
        assert f"interrupted by {number.name}" in shown


def test_the_end_of_the_guest_gives_the_terminal_back(at_bash) -> None:
    with at_bash() as at:
        at.type("echo o > /proc/sysrq-trigger\n")
        status, shown = at.end()
        assert (status, at.is_as_before) == (125, True)
        assert "error: " in shown


def test_a_time_limit_gives_the_terminal_back(template_name) -> None:
    with AtTerminal(*COMMAND, "run", "-it", "-t", template_name, "--timeout", "3s", "--", *BASH) as at:
        at.wait_raw()
        status, shown = at.end()
        assert (status, at.is_as_before) == (124, True)
        assert "error: " in shown


@pytest.mark.qemu
def test_what_stops_us_finds_the_terminal_as_it_was_and_we_go_on(template_name) -> None:
    run = ("run", "-it", "-t", template_name, "-e", "PS1=$ ", "--", *BASH)
    with AtTerminal(*IN_A_SHELL, *COMMAND, *run) as at:
        at.wait_for("job ")
        job = int(at.wait_for("."))
        at.wait_for("$ ")
        os.kill(job, signal.SIGTSTP)
        at.wait_for("stopped, in order: True")
        at.resize(33, 99)
        at.type("fg\n")
        at.wait_raw()
        at.type("while [ \"$(stty size)\" != '33 99' ]; do sleep 0.01; done; echo re''sized\n")
        at.wait_for("resized")
        assert at.is_raw
        at.type("exit\n")
        assert (at.end()[0], at.is_as_before) == (0, True)


def test_a_large_output_arrives_whole(template_name) -> None:
    with AtTerminal(*COMMAND, "run", "-it", "-t", template_name, "sh", "-c", "seq 300000; echo the end") as at:
        status, shown = at.end()
    assert status == 0
    assert shown == "".join(f"{number}\r\n" for number in range(1, 300_001)) + "the end\r\n"


def test_without_a_terminal_it_is_refused_and_nothing_is_forked(template_name) -> None:
    for argv in (["run", "-it", "-t", template_name, "true"], ["run", "--tty", "true"], ["shell"], ["shell", "0" * 12]):
        done = vmfork(*argv)
        assert (done.status, done.raw) == (125, b"")
        assert "standard input is not a terminal" in done.err
        assert "hint: " in done.err
    with AtTerminal(*COMMAND, "run", "-it", "--json", "-t", template_name, "true") as at:
        status, shown = at.end()
        assert (status, "leave out one of the two" in shown) == (125, True)


def test_a_shell_is_a_login_shell_with_a_prompt(template_name) -> None:
    with AtTerminal(*COMMAND, "shell", "-t", template_name, "-e", "PS1=none") as at:
        at.wait_for("# ")
        at.type("shopt -q login_shell && echo lo''gin $SHELL $PWD; hostname\n")
        at.wait_for("login /bin/bash /root")
        at.wait_for("vm-")
        at.type("exit 3\n")
        assert (at.end()[0], at.is_as_before) == (3, True)


@pytest.mark.parametrize("number", [0, signal.SIGHUP])
def test_a_shell_in_a_detached_machine_leaves_it_running(template_name, number) -> None:
    async def look(vm_id: str) -> tuple[bool, bool]:
        async with VM.attach(vm_id) as vm:
            return await vm.exists("/root/done"), (await vm.exec(["true"])).ok

    given = subprocess.run([*GIVING, template_name], capture_output=True, text=True, check=True, timeout=120)
    # Nor is it warned that the machine runs on. On a busy host the loop tells, for -X dev, of a step that took long.
    assert [line for line in given.stderr.splitlines() if not line.startswith("Executing <")] == []
    vm_id = given.stdout.strip()
    with AtTerminal(*COMMAND, "shell", vm_id) as at:
        at.wait_for("# ")
        at.type("test -e /root/here && touch /root/done && echo ma''rked\n")
        at.wait_for("marked")
        if number:
            at.process.send_signal(number)
        else:
            at.type("exit\n")
        assert (at.end()[0], at.is_as_before) == (128 + number if number else 0, True)
    assert asyncio.run(look(vm_id)) == (True, True)


@pytest.mark.parametrize("option", [["--cpus", "2"], ["-t", "test"], ["--file", "/etc/passwd:/x"]])
def test_what_is_for_a_fork_is_refused_for_a_machine(option) -> None:
    with AtTerminal(*COMMAND, "shell", *option, "0" * 12) as at:
        status, shown = at.end()
    assert status == 125
    assert "leave out the ID" in shown


@pytest.mark.needs("tmux")
@pytest.mark.qemu  # its tmux
def test_top_fills_a_window_of_tmux_and_follows_it(template_name, tmp_path) -> None:
    top = f"{' '.join(COMMAND)} run -it -t {template_name} top; echo ended with $?; exec sleep 60"
    with AtTmux(tmp_path, top, rows=20, columns=90) as window:
        assert "load average" in window.wait_for("PID")  # the last that is drawn of its head
        window.resize(rows=12, columns=60)
        window.type("q")
        window.wait_for("ended with 0")
