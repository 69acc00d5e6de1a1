"""A template whose RAM is pages here and there, of a machine that the emulator of this host could run."""

from __future__ import annotations

import os

from tests.unit.store.samples import TRAITS
from vmfork.config import Places
from vmfork.hypervisor.base import Hardware
from vmfork.hypervisor.qemu import find_qemu
from vmfork.machine.traits import emulator_traits
from vmfork.store import TemplateStore

MIB = 1 << 20
MODEL = "max,la57=off"
# Pages all over, in several layers; between them holes, and pages of zeros that are allocated.
CONTENT = {0: b"first", 4096: b"\0", 3 * MIB: b"third" * 5000, 17 * MIB: b"x" * 9000, 64 * MIB - 4096: b"last"}
FITS = {"vmgenid": True, "cpus": 1, "memory_mib": 64}


async def find_traits() -> dict[str, str]:
    """Those of a machine of the emulator that is here."""
    hardware = Hardware(machine="pc-q35-0.0", accel="tcg", cpu_model=MODEL, cpus=1, memory_mib=64)
    return {**TRAITS, **emulator_traits(hardware, await find_qemu()), "reseed": "both"}


def ram_of(name: str, places: Places) -> bytes:
    """All of the RAM of a template in force."""
    with TemplateStore(places.templates).open(name) as opened:
        return os.pread(opened.memory_fd, opened.manifest.memory_bytes, 0)
