"""What a guest's console tells of its end."""

from __future__ import annotations

import pytest

from vmfork.machine.ending import find_panic, is_out_of_memory

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
