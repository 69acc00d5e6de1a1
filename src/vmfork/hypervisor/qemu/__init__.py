"""The distribution's own QEMU: its binary, its command line, its monitor, its process.

The rest of the package asks for it here, and knows none of the modules inside.
"""

from vmfork.hypervisor.qemu.abilities import Abilities, ask_abilities
from vmfork.hypervisor.qemu.binary import QemuBinary, find_qemu, find_qemu_like
from vmfork.hypervisor.qemu.board import Board, board_for, board_of
from vmfork.hypervisor.qemu.command import (
    AGENT_PORT,
    PORTABLE,
    choose_cpu_model,
    default_cpu_model,
    most_memory_mib,
)
from vmfork.hypervisor.qemu.files import find_reads
from vmfork.hypervisor.qemu.machine import CONSOLE, LOG, QemuMachine
from vmfork.hypervisor.qemu.qcow2 import check_plain, format_of, write_empty
from vmfork.hypervisor.qemu.shared import SharedQemu

__all__ = [
    "AGENT_PORT",
    "CONSOLE",
    "LOG",
    "PORTABLE",
    "Abilities",
    "Board",
    "QemuBinary",
    "QemuMachine",
    "SharedQemu",
    "ask_abilities",
    "board_for",
    "board_of",
    "check_plain",
    "choose_cpu_model",
    "default_cpu_model",
    "find_qemu",
    "find_qemu_like",
    "find_reads",
    "format_of",
    "most_memory_mib",
    "write_empty",
]
