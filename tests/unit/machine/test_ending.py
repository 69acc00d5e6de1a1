"""What a guest's console tells of its end, and that every end is told."""

from __future__ import annotations

import asyncio

import pytest

from vmfork.errors import DeadlineExceeded, GuestError, MachineEnded
from vmfork.machine.ending import find_panic, is_out_of_memory, launch_error, watch_end

DEADLOCKED = "[    1.659154] Kernel panic - not syncing: System is deadlocked on memory"
OOM = "Kernel panic - not syncing: Out of memory and no killable processes..."
TRAP = "[    3.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\r\n[    3.2] CPU: 0 PID: 1"


@pytest.mark.parametrize(
    ("console", "panic", "memory"),
    [
        (f"ok\x1b[2J{DEADLOCKED}\r\n[    1.66]  vpanic+0xc5\r\n", "System is deadlocked on memory", True),
        (OOM, "Out of memory and no killable processes...", True),
        (TRAP, "Attempted to kill init! exitcode=0x0000000b", False),
        ("memory: 4096 MiB\nall is well", "", False),
    ],
)
def test_a_panic_is_found_on_the_console(console, panic, memory) -> None:
    assert find_panic(console) == panic
    assert is_out_of_memory(panic) == memory


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("qemu: qemu_thread_create: Resource temporarily unavailable\n", "ulimit -u"),
        ("qemu-system-x86_64: cannot set up guest memory 'ram': Cannot allocate memory\n", "short of memory"),
        ("qemu-system-x86_64: -nonsense: invalid option\n", "log"),
        ("", "doctor"),
    ],
)
def test_an_emulator_that_did_not_start_has_a_hint_in_what_it_said(said, hint) -> None:
    machine = Ended("", answers=False)
    machine.argv, machine.exit_code, machine.log_tail = (), -6, lambda: said
    assert hint in launch_error(machine, "the machine did not start").hint
    assert launch_error(machine, "the machine did not start", hint="give it time").hint == "give it time"


class Ended:
    """What watches a machine, with what it was told to do when something happens."""

    identity = argv = None
    exit_code = -9

    def __init__(self, console: str, *, answers: bool, running: bool = True) -> None:
        self.console, self.answers, self.running = console, answers, running
        self.killed = self.waits_on = False
        self.lost: Exception | None = None

    def on_exit(self, callback) -> None:
        self.exited = callback

    def on_halt(self, callback) -> None:
        self.halted = callback

    def watch_silence(self, limit_s, callback) -> None:
        self.silent = callback

    def await_reason(self, limit_s) -> None: ...

    def console_tail(self) -> str:
        return self.console

    def log_tail(self) -> str:
        return ""

    def kill(self) -> None:
        self.killed = True
        self.exited(-9)

    def fail(self, reason: Exception) -> None:
        self.lost = reason

    def wait_on(self) -> None:
        self.waits_on = True

    async def is_running(self) -> bool:
        return self.running

    async def ping(self, *, timeout_s: float) -> None:
        await asyncio.sleep(0)
        if not self.answers:
            raise DeadlineExceeded("a sign of life", timeout_s)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_guest_that_halted_is_ended_and_told_so() -> None:
    both = Ended("[    9.1] reboot: System halted", answers=False)
    watch_end(both, both)
    both.halted()
    await settle()
    assert both.killed
    assert isinstance(both.lost, MachineEnded)
    assert (str(both.lost), both.lost.halted) == ("the machine ended: its guest halted", True)
    assert "memory" not in both.lost.hint


async def test_a_guest_that_only_printed_the_words_runs_on() -> None:
    both = Ended("reboot: System halted", answers=True)
    watch_end(both, both)
    both.halted()
    await settle()
    assert (both.killed, both.lost) == (False, None)


async def test_a_guest_that_is_paused_is_not_taken_for_halted_until_it_goes_on() -> None:
    both = Ended("reboot: System halted", answers=False, running=False)
    watch_end(both, both)
    both.halted()
    await settle()
    assert (both.killed, both.lost) == (False, None)
    both.running = True
    await settle()
    assert both.killed


async def test_a_silent_guest_is_lost_unless_somebody_paused_it() -> None:
    stuck, paused = Ended("last words", answers=False), Ended("", answers=False, running=False)
    for both in (stuck, paused):
        watch_end(both, both)
        both.silent()
    await settle()
    assert isinstance(stuck.lost, GuestError)
    assert "said nothing for" in str(stuck.lost)
    assert stuck.lost.console_tail == "last words"
    assert (paused.lost, paused.waits_on) == (None, True)
