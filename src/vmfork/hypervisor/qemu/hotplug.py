"""What a guest reports of memory that is plugged and unplugged, as QEMU passes it on.

A Linux guest evaluates _OST when it is done with a request (Linux 6.12, drivers/acpi/scan.c, acpi_device_hotplug),
after new memory was brought online, so nothing has to be polled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmfork.errors import HostError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

GUEST_REPORT = "ACPI_DEVICE_OST"
DELETED = "DEVICE_DELETED"

# ACPI 6.5, 6.3.5: status codes of _OST.
_SUCCESS = 0
_EJECT_IN_PROGRESS = 0x84
_MEANING = {0x81: "it is in use", 0x82: "it is busy", 0x83: "something that depends on it is busy"}


async def wait_taken(events: AsyncIterator[Mapping[str, Any]], name: str) -> None:
    """The guest reported that it uses the device `name`. Raises `HostError` when it reported that it cannot."""
    async for event in events:
        report = _report_of(event, name)
        if report is None:
            continue
        if report != _SUCCESS:
            raise HostError(f"the guest did not take the new memory (ACPI status {report:#x})")
        return


async def wait_given_back(events: AsyncIterator[Mapping[str, Any]], name: str) -> None:
    """The device `name` is gone. Raises `HostError` when the guest reported that it keeps it."""
    async for event in events:
        if event["event"] == DELETED and event["data"].get("device") == name:
            return
        report = _report_of(event, name)
        if report not in (None, _SUCCESS, _EJECT_IN_PROGRESS):
            why = _MEANING.get(report, f"ACPI status {report:#x}")
            raise HostError(f"the guest does not give the memory back: {why}")


def _report_of(event: Mapping[str, Any], name: str) -> int | None:
    if event["event"] != GUEST_REPORT or event["data"]["info"].get("device") != name:
        return None
    return int(event["data"]["info"]["status"])
