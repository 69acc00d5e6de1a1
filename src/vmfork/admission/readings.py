"""What the host has now."""

from __future__ import annotations

from vmfork.admission.rule import Readings
from vmfork.host import allowance, cgroup, facts
from vmfork.host.pressure import read_pressure_percent
from vmfork.units import MIB


def take_readings() -> Readings:
    """What the host, and our control groups, have at this moment."""
    memory = facts.read_memory()
    return Readings(
        available_mib=memory.available // MIB,
        total_mib=memory.total // MIB,
        pressure_percent=_read_pressure(),
        descriptors_left=allowance.count_descriptors_left(),
        tasks_left=allowance.count_tasks_left(),
    )


def _read_pressure() -> float | None:
    """The host's, or our own group's where that is higher."""
    own = cgroup.locate_pressure()
    found = (read_pressure_percent(), None if own is None else read_pressure_percent(own))
    return max((percent for percent in found if percent is not None), default=None)
