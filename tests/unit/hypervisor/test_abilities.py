"""What an emulator was built with: asked of the real ones, kept as long as the file is the same; nonsense is told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vmfork.errors import HostError
from vmfork.hypervisor.base import Hardware
from vmfork.hypervisor.qemu import abilities as asked
from vmfork.hypervisor.qemu.abilities import Abilities, ask_abilities
from vmfork.hypervisor.qemu.binary import find_qemu

Q35 = Hardware(machine="pc-q35-7.2", accel="kvm", cpu_model="host", cpus=1, memory_mib=256)
MICROVM = replace(Q35, machine="microvm", vmgenid=False)

FULL = Abilities(
    machines=("microvm", "pc-q35-7.2"),
    devices=(
        *("pc-dimm", "virtio-blk-device", "virtio-blk-pci", "virtio-net-device", "virtio-net-pci"),
        *("virtio-serial-device", "virtio-serial-pci", "virtserialport", "vmgenid"),
    ),
    accels=("kvm", "tcg"),
    has_sandbox=True,
    has_user_network=True,
)
# As in Debian 12 and 13.
SLIM = replace(FULL, devices=("pc-dimm", "virtio-serial-device", "virtserialport", "vmgenid"), accels=("kvm", "qtest"))
SLIMMER = replace(SLIM, machines=("microvm",), devices=("virtio-serial-device", "virtserialport"))


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch) -> None:
    monkeypatch.setattr(asked, "_asked", {})


@pytest.fixture
def program(tmp_path):
    """Writes a program that stands in for QEMU: it says its version, or runs `body` and leaves a line in `runs`."""

    def write(body: str) -> str:
        path = tmp_path / "qemu"
        path.unlink(missing_ok=True)
        version = '[ "$1" = --version ] && echo "QEMU emulator version 7.2.22 (Debian)" && exit'
        path.write_text(f"#!/bin/sh\n{version}\necho run >> {tmp_path}/runs\n{body}\n")
        path.chmod(0o755)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("abilities", "hardware", "missing"),
    [
        (FULL, Q35, []),
        (FULL, replace(Q35, accel="tcg", max_memory_mib=512), []),
        (FULL, MICROVM, []),
        (SLIM, Q35, ["device virtio-serial-pci"]),
        (SLIM, MICROVM, []),
        (SLIM, replace(MICROVM, accel="tcg"), ["accelerator tcg"]),
        (SLIMMER, MICROVM, []),
        (FULL, replace(Q35, nic=True), []),
        (FULL, replace(MICROVM, nic=True), []),
        (SLIMMER, replace(MICROVM, nic=True), ["device virtio-net-device"]),
        (FULL, replace(Q35, disk=True), []),
        (FULL, replace(MICROVM, disk=True), []),
        (SLIMMER, replace(MICROVM, disk=True), ["device virtio-blk-device"]),
        (replace(FULL, has_user_network=False), MICROVM, []),
        (replace(FULL, has_user_network=False), replace(MICROVM, nic=True), ["network backend user"]),
        (
            SLIMMER,
            replace(Q35, max_memory_mib=512),
            ["machine pc-q35-7.2", "device virtio-serial-pci", "device vmgenid", "device pc-dimm"],
        ),
    ],
)
def test_what_is_missing_is_named(abilities, hardware, missing) -> None:
    assert abilities.find_missing(hardware) == missing


async def test_the_one_on_path_has_all_that_a_machine_needs(binary, tmp_path) -> None:
    found = await ask_abilities(binary, kept=tmp_path / "kept")
    machine = f"pc-q35-{binary.release[0]}.{binary.release[1]}"
    for hardware in (replace(Q35, machine=machine), MICROVM, replace(MICROVM, accel="tcg")):
        assert found.find_missing(hardware) == []
        assert found.find_missing(replace(hardware, nic=True, disk=True)) == []
    assert found.has_sandbox
    assert found.has_user_network


@pytest.mark.needs("strace")
async def test_to_ask_loads_no_module_that_is_not_needed(binary, tmp_path) -> None:
    """Listed whole, an emulator loads all modules of its folder, and aborts where they are another build's."""
    trace, program = tmp_path / "trace", tmp_path / "qemu"
    program.write_text(f'#!/bin/sh\nexec strace -f -e trace=openat -o {trace} {binary.path} "$@"\n')
    program.chmod(0o755)
    found = await ask_abilities(replace(binary, path=program), kept=tmp_path / "kept")
    assert found.find_missing(MICROVM) == []
    opened = [line for line in trace.read_text().splitlines() if "/qemu/" in line and "ENOENT" not in line]
    assert [line for line in opened if ".so" in line and "/accel-" not in line] == []


@pytest.mark.needs("slim-qemu")
async def test_a_slim_one_is_asked_without_kvm(tmp_path) -> None:
    found = await ask_abilities(await find_qemu("qemu-system-x86_64-microvm"), kept=tmp_path / "kept")
    assert found.find_missing(MICROVM) == []
    assert "tcg" not in found.accels


async def test_it_is_asked_once_for_each_file(program, tmp_path, monkeypatch) -> None:
    lines = ['{"QMP": {}}', '{"return": {}}', *(json.dumps(answer) for answer in ANSWERS), '{"return": {}}']
    body = "head -n 1 > /dev/null\n" + "\n".join(f"echo '{line}'" for line in lines)
    binary = await find_qemu(program(body))
    first = await ask_abilities(binary, kept=tmp_path / "kept")
    assert first == Abilities(
        machines=("microvm", "none"),
        devices=("virtio-net-device", "virtserialport", "vmgenid"),
        accels=("kvm",),
        has_sandbox=False,
        has_user_network=False,
    )
    assert await ask_abilities(binary, kept=tmp_path / "kept") == first
    monkeypatch.setattr(asked, "_asked", {})  # as in another process
    assert await ask_abilities(binary, kept=tmp_path / "kept") == first
    assert len((tmp_path / "runs").read_text().splitlines()) == 1
    # What was kept is damaged: it is asked again. So is a file that was replaced.
    monkeypatch.setattr(asked, "_asked", {})
    (kept,) = (tmp_path / "kept").iterdir()
    kept.write_text("{}")
    assert await ask_abilities(binary, kept=tmp_path / "kept") == first
    await ask_abilities(await find_qemu(program(body + "\n")), kept=tmp_path / "kept")
    assert len((tmp_path / "runs").read_text().splitlines()) == 3


ANSWERS = (
    {"return": [{"name": "none"}, {"name": "microvm"}]},
    {"error": {"class": "GenericError", "desc": "invalid option name: sandbox"}},
    {"error": {"class": "GenericError", "desc": "Parameter 'type' does not accept value 'user'"}},
    # Port, card and disk of either board, virtserialport, vmgenid, pc-dimm, kvm, tcg.
    *(
        {"return": []} if there else {"error": {"class": "DeviceNotFound", "desc": "not found"}}
        for there in (False, False, False, False, True, False, True, True, False, True, False)
    ),
)


async def test_what_cannot_be_written_is_no_error(program, tmp_path) -> None:
    (tmp_path / "kept").write_text("a file")
    lines = ['{"QMP": {}}', '{"return": {}}', *(json.dumps(answer) for answer in ANSWERS)]
    binary = await find_qemu(program("\n".join(f"echo '{line}'" for line in lines)))
    assert (await ask_abilities(binary, kept=tmp_path / "kept")).accels == ("kvm",)


@pytest.mark.parametrize("said", ["", "echo hello", "echo '{}'", """echo '{"QMP": {}}\n{"return": {}}'""", "exit 1"])
async def test_nonsense_is_told(program, tmp_path, said) -> None:
    with pytest.raises(HostError, match="does not tell what it was built with"):
        await ask_abilities(await find_qemu(program(said)), kept=tmp_path / "kept")


async def test_silence_ends(program, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(asked, "_LIMIT_S", 0.2)
    with pytest.raises(HostError, match="did not tell within"):
        await ask_abilities(await find_qemu(program("exec sleep 60")), kept=tmp_path / "kept")
