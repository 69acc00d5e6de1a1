"""From what was sent to a template in force."""

from __future__ import annotations

import asyncio
import errno
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmfork.config import VMConfig, check_name
from vmfork.errors import HostError, StoreBusy, TemplateError, TemplateExists, TemplateUnfit
from vmfork.host import facts
from vmfork.host.thread import in_thread
from vmfork.host.tsc import measure_tsc_khz
from vmfork.machine.board import needs_tsc
from vmfork.machine.emulator import find_emulator_like
from vmfork.machine.verdict import find_failure
from vmfork.store import TemplateStore
from vmfork.template.budget import make_room, stage
from vmfork.template.kept import KeptRecipe, keeping_recipe
from vmfork.template.source import Source
from vmfork.template.travelling.disks import check_sent, fetched_disks, hold_disks
from vmfork.travel.artifact import KIND, Artifact
from vmfork.travel.fit import find_misfit, hardware_of
from vmfork.travel.sending import tell_part
from vmfork.travel.unpack import unpack
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmfork.config import Instance
    from vmfork.hypervisor.qemu import QemuBinary
    from vmfork.store import Manifest, Staging
    from vmfork.travel.document import Blobs

# Two measurements of one processor agree to 1 in 2,000,000 (host/tsc.py). A guest's clock that goes wrong by more than
# this is no clock.
_MOST_DRIFT = 0.0001


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a template comes into force: under `name`, by default its own. `config` is as for `Source.open`.

    `replace_it`: whatever has the name; another that is on its way is waited for, `wait_s` seconds at most. With
    `keep_later` what has the name and was frozen later stays in force. One that `is_ours` comes back to where it was
    frozen, or was loaded: it is what it was, and so is its recipe.
    """

    instance: Instance
    config: VMConfig
    name: str = ""
    replace_it: bool = False
    keep_later: bool = False
    wait_s: float = 0.0
    is_ours: bool = False


async def load_template(path: Path, target: Target) -> Source:
    """The template in the file or folder at `path` is in force, and fits this host.

    Whether it fits is found out before its RAM is read. Raises `ArtifactError`, `TemplateUnfit`, and what a build
    raises of its name. After any error, and on cancel, what was there before is in force.
    """
    layout = await asyncio.to_thread(KIND.open, path)
    with layout:
        artifact = await asyncio.to_thread(KIND.read_layout, Artifact, layout)
        return await put_in_force(artifact, layout, target, of=str(path))


async def put_in_force(artifact: Artifact, blobs: Blobs, target: Target, *, of: str) -> Source:
    """The template that `artifact` describes, its layers in `blobs`, is in force. As `load_template`."""
    if not target.is_ours:
        check_sent(artifact, of=of)
    name, instance = check_name(target.name or artifact.manifest.name), target.instance
    binary = await _check_fit(artifact, target, of=of)
    store, m = TemplateStore(instance.places.templates), artifact.manifest
    if not target.replace_it and store.find_generation(name) is not None:
        raise TemplateExists(name)
    await make_room(name, -(-m.memory_bytes // MIB), instance=instance)
    with _out_of_space_named(store.folder):
        staging = await stage(
            store,
            name,
            memory_bytes=m.memory_bytes,
            instance=instance,
            replace=target.replace_it,
            wait_s=target.wait_s,
        )
    async with staging:
        if not (target.keep_later and _has_later(store, name, m)):
            await _fill(staging, artifact, blobs, target, binary=binary, of=of)
    return await Source.open(name, config=target.config, instance=instance)


def _has_later(store: TemplateStore, name: str, m: Manifest) -> bool:
    """Whether what is in force under the name was frozen after `m`, and its RAM is here."""
    try:
        there = store.read_manifest(name)
    except (TemplateError, StoreBusy):
        return False
    return there.created_at > m.created_at and there.host_boot_id == facts.boot_id()


async def _fill(
    staging: Staging, artifact: Artifact, blobs: Blobs, target: Target, *, binary: QemuBinary, of: str
) -> None:
    """What was sent is in force, in the place of what was before."""
    name, instance, m, fd = staging.name, target.instance, artifact.manifest, staging.memory_fd
    tell = tell_part(f"loading {name!r}", instance)
    async with fetched_disks(artifact, blobs, of=of, instance=instance):
        with _out_of_space_named(staging.memory_path.parent):
            found = await in_thread(lambda stop: unpack(artifact, blobs, memory_fd=fd, of=of, stop=stop, tell=tell))
            assert found is not None  # it was not stopped
            memory, state = found
            _write(staging.state_path, state)
        here = replace(
            m,
            name=name,
            generation=staging.generation,
            memory_allocated_bytes=memory.allocated_bytes,
            host_boot_id=facts.boot_id(),
            qemu_path=str(binary.path),
            qemu_stamp=binary.stamp,
            layers=(),  # those it was made by are another host's, or went with RUNTIME
            came_from=m.came_from if target.is_ours else of,
        )
        # Nobody can make it again here; and what was made before under its name is something else.
        stranger = KeptRecipe(config=VMConfig(), came_from=of)
        with nullcontext() if target.is_ours else keeping_recipe(name, stranger, places=instance.places):
            hold_disks(m, staging.memory_path.parent, instance)
            await staging.commit(here)


async def _check_fit(artifact: Artifact, target: Target, *, of: str) -> QemuBinary:
    """The emulator that it fits. Raises `TemplateUnfit`, naming the first thing that differs, and `HostError`."""
    m = artifact.manifest
    # The stamp is another host's: the emulator here is asked for its version, whatever it says.
    binary = await find_emulator_like(
        m.qemu_path, m.traits.get("qemu.version", ""), "", configured=target.config.qemu, places=target.instance.places
    )
    misfit = find_misfit(m, binary)
    if misfit is None and m.traits["accel"] == "kvm" and not target.is_ours and find_failure(target.instance.places):
        misfit = "accel", "kvm", "tcg"
    if misfit is None and needs_tsc(hardware_of(m)):
        khz = await asyncio.to_thread(measure_tsc_khz)
        if abs(khz - artifact.tsc_khz) > khz * _MOST_DRIFT:
            misfit = "tsc_khz", artifact.tsc_khz, khz
    if misfit is not None:
        raise TemplateUnfit(m.name, *misfit, source=of)
    return binary


@contextmanager
def _out_of_space_named(folder: Path) -> Iterator[None]:
    """There was room when it began. Where templates have no tmpfs of their own others may have taken it since."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise HostError(
            f"the file system of {folder} ran full while the template was written there",
            hint="make room there, or set VMFORK_RUNTIME_DIR to a larger tmpfs",
        ) from error


def _write(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)
