"""Whether machines can be made here from what a manifest describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.host import kvm
from vmfork.hypervisor.base import Hardware
from vmfork.machine.traits import DISK, emulator_traits
from vmfork.wire.frame import SUPPORTED_PROTOCOLS

if TYPE_CHECKING:
    from vmfork.hypervisor.qemu import QemuBinary
    from vmfork.store import Manifest

Misfit = tuple[str, object, object]


def hardware_of(m: Manifest) -> Hardware:
    """What machines that are made from what it describes are made of."""
    return Hardware(
        machine=m.traits["machine"],
        accel=m.traits["accel"],
        cpu_model=m.traits["cpu_model"],
        cpus=m.cpus,
        memory_mib=m.memory_mib,
        vmgenid=m.vmgenid,
        max_cpus=m.max_cpus,
        max_memory_mib=m.max_memory_mib,
        added_mib=m.added_mib,
        nic=m.nic,
        disk=DISK in m.traits,
        scratch_mib=m.disk_mib,
    )


def find_misfit(m: Manifest, binary: QemuBinary) -> Misfit | None:
    """The first thing about this host that differs: its name, what the template has, what is here. Or `None`."""
    if m.agent_protocol not in SUPPORTED_PROTOCOLS:
        return "agent.protocol", m.agent_protocol, max(SUPPORTED_PROTOCOLS)
    here = emulator_traits(hardware_of(m), binary)
    if (differing := m.find_difference(here)) is not None:
        return differing, m.traits.get(differing), here[differing]
    if m.traits["accel"] == "kvm" and kvm.find_refusal() is not None:
        return "accel", "kvm", "tcg"
    return None
