"""A frozen machine gets its manifest and takes its name: from then on there is a template."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmfork.host import facts
from vmfork.machine.traits import DISK
from vmfork.store import Manifest
from vmfork.store.manifest import FORMAT, WITHOUT_DISK
from vmfork.store.ram_file import digest_ram

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmfork.adopt.todo import Thaw
    from vmfork.machine.facts import MachineFacts
    from vmfork.store import Staging
    from vmfork.store.manifest import DoneStep
    from vmfork.template.recipe import Recipe
    from vmfork.template.scratch import StagedDisk


async def publish(
    staging: Staging,
    machine: MachineFacts,
    recipe: Recipe,
    *,
    todo: Thaw,
    timings: Mapping[str, float],
    base_image: str = "",
    steps: Sequence[DoneStep] = (),
    layers: Sequence[str] = (),
    disk: StagedDisk,
) -> None:
    """The template is in force: RAM and device state in the staging folder, and the manifest that describes them.

    The manifest says what was booted, not what a caller asked for. `timings` are seconds by phase. `base_image` is what
    the machine's image was derived from. The machine's disks, where it has any, are held: that of its root, and what
    was on one that it wrote to, in `disk`. Raises `ImageCorrupt` when the former is missing.
    """
    staging.state_path.chmod(0o600)
    memory = await asyncio.to_thread(digest_ram, staging.memory_path)
    state = staging.state_path.read_bytes()
    hardware, make = machine.hardware, machine.make
    assert make is not None  # only of machines that we started
    if (sha256 := make.traits.get(DISK)) is not None:
        disk.disks.hold_for(staging.memory_path.parent, sha256, image=machine.image)
    disk_sha256 = await disk.keep_for(staging.memory_path.parent, whose=machine.image)
    manifest = Manifest(
        name=staging.name,
        generation=staging.generation,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),  # checkpoints are sorted by it
        image=machine.image,
        cpus=hardware.cpus,
        memory_mib=hardware.memory_mib,
        max_cpus=hardware.max_cpus,
        max_memory_mib=hardware.max_memory_mib,
        added_mib=hardware.added_mib,
        nic=hardware.nic,
        disk_mib=hardware.scratch_mib,
        disk_sha256=disk_sha256,
        traits=make.traits,
        hooks=todo.hooks,
        watchers=todo.watchers,
        secret_paths=recipe.secrets.paths,
        secret_env=recipe.secrets.env,
        secrets_found=todo.secrets_found,
        agent_protocol=make.agent_protocol,
        agent_version=make.agent_version,
        agent_capabilities=make.agent_capabilities,
        vmgenid=hardware.vmgenid,
        memory_bytes=staging.memory_bytes,
        memory_allocated_bytes=memory.allocated_bytes,
        memory_sha256=memory.sha256,
        state_bytes=len(state),
        state_sha256=hashlib.sha256(state).hexdigest(),
        host_boot_id=facts.boot_id(),
        host_kernel=facts.kernel_release(),
        qemu_path=make.qemu_path,
        qemu_stamp=make.qemu_stamp,
        warm_up=recipe.warm_up,
        ready=recipe.ready,
        parent=machine.identity.template,
        ancestors=machine.descent.templates,
        live=todo.greets,
        unset=todo.unset,
        recipe=recipe.name,
        base_image="" if base_image == machine.image else base_image,
        steps=tuple(steps),
        layers=tuple(layers),
        timings={key: round(value, 4) for key, value in timings.items()},
        format=FORMAT if hardware.scratch_mib else WITHOUT_DISK,
    )
    await staging.commit(manifest)
