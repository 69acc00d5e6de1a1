"""`vmfork doctor`: can VMs run here, how, and what to do if not."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import click

from vmfork.admission.rule import show_arithmetic
from vmfork.cli.loop import run_async
from vmfork.cli.options import get_settings, json_option
from vmfork.cli.show import printable, show_json, shown_progress
from vmfork.config import Instance, find_places
from vmfork.errors import ImageError, VMForkError
from vmfork.host import facts, kvm
from vmfork.host.broker import find_broker
from vmfork.host.jail import find_preload
from vmfork.host.keeper import find_keeper
from vmfork.host.passt import find_fence, find_passt
from vmfork.hypervisor.qemu import ask_abilities
from vmfork.image import ImageStore
from vmfork.image.debootstrap import find_mmdebstrap
from vmfork.image.disk import find_sqfstar
from vmfork.image.lz4 import check_library
from vmfork.image.namespaces import choose_namespaces
from vmfork.image.recipe import find_agent
from vmfork.machine.accelerator import prove_kvm
from vmfork.machine.emulator import find_emulator, find_slim
from vmfork.machine.isolation import decide_containment, find_todo
from vmfork.machine.plan import make_hardware
from vmfork.machine.room import charge_for_fork, count_room
from vmfork.machine.scratch import find_mke2fs
from vmfork.machine.trial import prove
from vmfork.store.staging import STATE_HEADROOM
from vmfork.units import MIB, format_bytes, format_count, format_mib

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmfork.config import Limits, Places, VMConfig
    from vmfork.hypervisor.base import Hardware
    from vmfork.hypervisor.qemu import QemuBinary
    from vmfork.image import Image
    from vmfork.progress import ProgressListener

Level = Literal["ok", "note", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `fail` keeps VMs from running; `note` is worth knowing. `todo` says what would mend it.

    `detail` is for a closer look, such as the end of a guest's console.
    """

    name: str
    level: Level
    found: str
    todo: str = ""
    detail: str = ""


@click.command("doctor")
@click.option("--recheck", is_flag=True, help="Prove KVM again, whatever is remembered of it.")
@click.option("-v", "--verbose", is_flag=True, help="Show details too, such as the console of a guest that KVM failed.")
@json_option
def command(recheck: bool, verbose: bool, as_json: bool) -> int:
    """Tell whether VMs can run here, how, and what to do if not. Exit status 0 or 1."""
    with shown_progress() as progress:
        checks = run_async(examine(get_settings().vm, find_places(), progress, recheck=recheck))
    able = all(check.level != "fail" for check in checks)
    if (as_json or not sys.stdout.isatty()) and get_settings().vm.accel == "auto":
        kvm.warn_if_forbidden()  # whoever reads the report at a terminal reads it there
    if as_json:
        show_json({"ok": able, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            click.echo(f"{check.level:4}  {check.name}: {check.found}")
            if check.todo:
                click.echo(f"      -> {check.todo}")
            if verbose and check.detail:
                click.echo(textwrap.indent(printable(check.detail), "      | "))
        click.echo("VMs can run here." if able else "VMs cannot run here yet: see what failed above.")
    return 0 if able else 1


async def examine(
    config: VMConfig, places: Places, progress: ProgressListener, *, recheck: bool = False, may_boot: bool = True
) -> list[Check]:
    """All findings. Where KVM and the image are here, boots a VM, unless KVM was proven before and not `recheck`.

    Unless it `may_boot`, nothing is booted.
    """
    checks = []
    binary: QemuBinary | None = None
    try:
        binary = await find_emulator(config, places=places)
        checks.append(Check("qemu", "ok", f"{binary.path}, version {binary.version}"))
    except VMForkError as error:
        checks.append(_failed("qemu", error))
    image, image_check = _check_image(config, places)
    checks += [image_check, *_check_building(built=image is not None), _check_disk(config), _check_setpriv()]
    checks += [_check_shipped("agent", find_agent), _check_shipped("keeper", find_keeper)]
    checks += [_check_shipped("preload", find_preload), _check_shipped("broker", find_broker)]
    checks.append(await _check_isolation(config, binary, places))
    checks += await _check_card(binary, places)
    kvm_check = await _check_kvm(config, image, binary if may_boot else None, places, progress, recheck=recheck)
    checks += [kvm_check, *await _check_slim(config, binary, places, used=kvm_check.level == "ok")]
    checks.append(_check_memory(config))
    if binary is not None:
        accel = "kvm" if kvm_check.level == "ok" else "tcg"
        checks.append(_check_room(make_hardware(config, binary=binary, accel=accel), config.limits, places))
    checks.append(_check_space(config, places))
    checks += [_check_place("home", places.home), _check_place("runtime", places.runtime)]
    return checks


async def _check_card(binary: QemuBinary | None, places: Places) -> list[Check]:
    """What a network card, which a template has where it is asked for, can lead to."""
    if binary is None:
        return []
    try:
        abilities = await ask_abilities(binary, kept=places.emulators)
    except VMForkError as error:
        return [Check("card", "note", error.message, error.hint)]
    if abilities.has_user_network:
        found = "a template with a network card (--nic) can be forked with --card restricted, or open"
        return [Check("card", "ok", found), await _check_passt()]
    todo = "where programs are to reach something, --allow and --network need no card"
    return [Check("card", "note", f"{binary.path} was built without a user network: no template has a card", todo)]


async def _check_passt() -> Check:
    """Whether a card can lead out past the host's loopback."""
    try:
        passt = await find_passt()
        find_fence()
    except VMForkError as error:
        return Check("passt", "note", f"{error.message}: no card leads out by it", error.hint)
    version = f"version {passt.version}" if passt.version else "which does not tell its version"
    return Check("passt", "ok", f"{passt.path}, {version}: --card passt leads out, without this host's loopback")


async def _check_slim(config: VMConfig, full: QemuBinary | None, places: Places, *, used: bool) -> list[Check]:
    """Whether the slim emulator starts machines, and why not. Empty when the host has none, or one was configured."""
    if full is None or config.qemu:
        return []
    try:
        slim = await find_slim(make_hardware(config, binary=full, accel="kvm"), full, places=places)
    except VMForkError as error:
        return [Check("slim qemu", "note", f"{error.message}; the full one is used")]
    if slim is None:
        return []
    if slim.lacks:
        return [Check("slim qemu", "note", f"{slim.lack}; the full one is used")]
    if not used:
        return [Check("slim qemu", "note", f"{slim.binary.path} is for KVM alone; the full one is used")]
    return [Check("slim qemu", "ok", f"{slim.binary.path} starts machines under KVM")]


def _failed(name: str, error: VMForkError) -> Check:
    return Check(name, "fail", error.message, error.hint)


def _check_image(config: VMConfig, places: Places) -> tuple[Image | None, Check]:
    try:
        image = ImageStore(places.images).open(config.image)
    except ImageError as error:
        return None, Check("image", "note", error.message, error.hint)
    found = f"{image.name}, {format_bytes(image.size_bytes)}, kernel {image.kernel_release}"
    return image, Check("image", "ok", found)


def _check_building(*, built: bool) -> list[Check]:
    """What images are built with. Where the image is there already, it is worth knowing what is missing."""
    needed = {"mmdebstrap": find_mmdebstrap, "namespaces": _find_namespaces, "liblz4": check_library}
    checks = [_check_needed(name, find, "note" if built else "fail") for name, find in needed.items()]
    return [*checks, _check_needed("sqfstar", find_sqfstar, "note")]


def _check_disk(config: VMConfig) -> Check:
    """What the disk of a machine's own is made with; nothing comes up without it where machines are to have one."""
    return _check_needed("mke2fs", find_mke2fs, "fail" if config.disk_mib else "note")


def _check_needed(name: str, find: Callable[[], str | None], level: Level) -> Check:
    try:
        return Check(name, "ok", find() or "is here")
    except VMForkError as error:
        return Check(name, level, error.message, error.hint)


def _find_namespaces() -> str:
    chosen = choose_namespaces()
    if not chosen.argv:
        return "none; root builds without"
    return "root's own" if chosen.ids == "real" else "of a user who is mapped to root"


def _check_setpriv() -> Check:
    path = shutil.which("setpriv")
    if path:
        return Check("setpriv", "ok", path)
    return Check(
        "setpriv", "note", "not found; an image build may outlive a killed vmfork", "apt-get install util-linux"
    )


async def _check_isolation(config: VMConfig, binary: QemuBinary | None, places: Places) -> Check:
    """How far emulators are kept from this host, tried anew, and what keeps it from more."""
    if binary is None:
        return Check("isolation", "note", "not known without an emulator")
    policy = config.isolation_policy
    try:
        await prove(policy.users, runtime=places.runtime, anew=True)
        isolation = (await decide_containment(binary, policy, places=places)).isolation
    except VMForkError as error:
        return _failed("isolation", error)
    found = f"{isolation.level}: {', '.join(isolation.parts) or 'nothing'}"
    if not isolation.missing:
        return Check("isolation", "ok", found)
    told = f"{found}; without {'; without '.join(isolation.missing)}"
    return Check("isolation", "note", told, find_todo(isolation))


def _check_shipped(name: str, find: Callable[[], Path]) -> Check:
    """A program that the package's build step makes."""
    try:
        return Check(name, "ok", str(find()))
    except VMForkError as error:
        return _failed(name, error)


async def _check_kvm(
    config: VMConfig,
    image: Image | None,
    binary: QemuBinary | None,
    places: Places,
    progress: ProgressListener,
    *,
    recheck: bool,
) -> Check:
    if (refusal := kvm.find_refusal()) is not None:
        return _no_kvm(config, refusal.reason, refusal.todo)
    if image is None or binary is None or config.accel == "tcg":
        return Check("kvm", "note", "/dev/kvm is here, not proven yet: the first boot will tell")
    try:
        verdict = await prove_kvm(config, image=image, binary=binary, instance=Instance(places, progress), anew=recheck)
    except VMForkError as error:
        found = f"/dev/kvm is here, and could not be proven: {error.message}"
        return Check("kvm", "fail", found, error.hint, error.details())
    if verdict.usable:
        return Check("kvm", "ok", "proven: it runs the guest, and is used")
    found = f"/dev/kvm is here but does not run the guest: {verdict.reason}"
    return _no_kvm(config, found, "", detail=verdict.console_tail)


def _no_kvm(config: VMConfig, found: str, todo: str, *, detail: str = "") -> Check:
    if config.accel == "kvm":
        return Check("kvm", "fail", found, todo or "set vm.accel to auto or tcg", detail)
    return Check("kvm", "note", f"{found}; TCG is used: slower, but it runs", todo, detail)


def _check_memory(config: VMConfig) -> Check:
    need, available = config.memory_mib * MIB + STATE_HEADROOM, facts.available_memory_bytes()
    found = (
        f"{format_bytes(available)} available, a template of {format_mib(config.memory_mib)} needs {format_bytes(need)}"
    )
    return Check("memory", "ok", found) if need <= available else Check("memory", "fail", found, "free some memory")


def _check_room(hardware: Hardware, limits: Limits, places: Places) -> Check:
    """How many more forks of a template of `hardware` the host has room for, with the arithmetic."""
    if not limits.overcommit:
        return Check("room", "note", "overcommit is 0: forks are started whatever the host has")
    charge = charge_for_fork(hardware, limits)
    count, promised, readings = count_room(places.vms, charge, limits)
    detail = "\n".join(show_arithmetic(promised, readings=readings, limits=limits))
    found = f"{format_count(count, 'more fork')} of {format_mib(hardware.memory_mib)}, each counted with"
    found += f" {format_mib(charge.share_mib)}; {format_count(promised.count, 'machine')} running"
    todo = "" if count else "end machines or other programs, or raise overcommit in [vm]"
    return Check("room", "ok" if count else "note", found, todo, detail)


def _check_space(config: VMConfig, places: Places) -> Check:
    free = facts.free_space_bytes(places.runtime)
    found = f"{format_bytes(free)} free in {places.runtime}"
    # Who may mount gives each template a tmpfs of its own; only logs and sockets lie in the folder itself.
    need = MIB if facts.may_mount() else config.memory_mib * MIB + STATE_HEADROOM
    if need <= free:
        return Check("space", "ok", found)
    return Check("space", "fail", found, "set VMFORK_RUNTIME_DIR to a larger tmpfs")


def _check_place(name: str, path: Path) -> Check:
    nearest = path
    while not nearest.exists():
        nearest = nearest.parent
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return Check(name, "ok", str(path))
    variable = "VMFORK_HOME" if name == "home" else "VMFORK_RUNTIME_DIR"
    return Check(name, "fail", f"{path} cannot be written", f"set {variable} to a folder of yours")
