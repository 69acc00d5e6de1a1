"""`vmfork doctor`: can machines run here, how, and what to do if not."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import asdict, dataclass

import click

from vmfork.cli.report import print_json, print_rows
from vmfork.config import Places, VMConfig, find_places
from vmfork.errors import VMForkError
from vmfork.host import facts
from vmfork.units import MIB, format_mib


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `ok` is what the whole verdict is made of."""

    what: str
    ok: bool
    found: str
    hint: str = ""


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True)
def command(as_json: bool) -> int:
    """Look at everything a machine needs. Exit status 0 when machines can run, 1 when not."""
    findings = asyncio.run(_look(find_places()))
    healthy = all(finding.ok for finding in findings)
    if as_json:
        print_json({"ok": healthy, "findings": [asdict(finding) for finding in findings]})
    else:
        print_rows(("", "WHAT", "FOUND"), [("ok" if f.ok else "NO", f.what, f.found) for f in findings])
        for finding in findings:
            if finding.hint:
                print(f"hint: {finding.what}: {finding.hint}")
    return 0 if healthy else 1


async def _look(places: Places) -> list[Finding]:
    return [
        await _emulator(),
        *(_program(name, package) for name, package in (("mmdebstrap", "mmdebstrap"), ("setpriv", "util-linux"))),
        await _kvm(places),
        _memory(),
        Finding("home", ok=True, found=str(places.home)),
        Finding("runtime", ok=True, found=f"{places.runtime} ({format_mib(_free_mib(places))} free)"),
    ]


async def _emulator() -> Finding:
    from vmfork.hypervisor.qemu.binary import find_qemu  # noqa: PLC0415

    try:
        binary = await find_qemu()
    except VMForkError as error:
        return Finding("qemu", ok=False, found=str(error), hint=error.hint)
    return Finding("qemu", ok=True, found=f"{binary.path} {binary.version}")


def _program(name: str, package: str) -> Finding:
    path = shutil.which(name)
    return Finding(name, path is not None, path or "missing", "" if path else f"install it: apt-get install {package}")


async def _kvm(places: Places) -> Finding:
    from vmfork.hypervisor.qemu.binary import find_qemu  # noqa: PLC0415
    from vmfork.image import open_image  # noqa: PLC0415
    from vmfork.vm.accelerator import prove_kvm  # noqa: PLC0415

    device = facts.kvm_device()
    if not device.exists or not device.accessible:
        state = "may not be opened by this user" if device.exists else "does not exist"
        return Finding("kvm", ok=True, found=f"/dev/kvm {state}: machines run under TCG, slower")
    try:
        image = open_image("default", images_dir=places.images)
        verdict = await prove_kvm(VMConfig(), image=image, binary=await find_qemu(), places=places, anew=True)
    except VMForkError:
        return Finding("kvm", ok=True, found="/dev/kvm exists; proven when the first image is there")
    found = "runs the guest" if verdict.usable else f"does not run the guest, TCG will: {verdict.reason}"
    return Finding("kvm", ok=True, found=found)


def _memory() -> Finding:
    have = facts.available_memory_bytes() // MIB
    need = VMConfig().memory_mib + 128
    return Finding("memory", have >= need, f"{format_mib(have)} available", "" if have >= need else "free some memory")


def _free_mib(places: Places) -> int:
    return facts.free_space_bytes(places.runtime) // MIB
