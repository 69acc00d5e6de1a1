"""A disk that a machine was given for itself: its guest has not booted with it, and mounts it before all else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.errors import AdoptError, DeadlineExceeded, GuestError
from vmfork.units import MIB, format_bytes, format_mib

if TYPE_CHECKING:
    from vmfork.agent.client import AgentClient


async def set_up_disk(agent: AgentClient, size_mib: int, *, timeout_s: float) -> None:
    """A disk of `size_mib` MiB, with nothing on it, is at `/scratch` of the guest.

    Raises `AdoptError` when the guest did not confirm that, and the size, in time; the machine must then be destroyed.
    """
    try:
        found = await agent.mount_disk(timeout_s=timeout_s)
    except DeadlineExceeded as error:
        raise AdoptError("disk", f"the guest did not answer within {timeout_s:g} s") from error
    except GuestError as error:
        raise AdoptError("disk", error.message, hint=error.hint) from error
    if found.size_bytes != size_mib * MIB:
        shown = f"{found.name!r} with {format_bytes(found.size_bytes)}"
        raise AdoptError("disk", f"the guest shows {shown}, not {format_mib(size_mib)}")
