"""Finding QEMU: missing, too old, something else, silent, failing; replaced under the same path."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.timing import with_more_time
from vmfork.errors import ConfigError, HostError
from vmfork.host.process import ProcessIdentity
from vmfork.hypervisor.qemu import binary as qemu
from vmfork.hypervisor.qemu.binary import find_qemu, find_qemu_like, locate_qemu, stamp_of

DEBIAN = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"


@pytest.fixture
def program(tmp_path):
    """Writes a program that stands in for QEMU; every run of it leaves a line in `runs`."""

    def write(body: str) -> str:
        path = tmp_path / "qemu"
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\n{body}\n")
        path.chmod(0o755)
        return str(path)

    return write


def run_count(tmp_path) -> int:
    return len((tmp_path / "runs").read_text().splitlines()) if (tmp_path / "runs").exists() else 0


async def test_the_one_on_path_is_known(binary) -> None:
    assert binary.release >= qemu.MINIMUM
    assert binary.version.startswith(".".join(map(str, binary.release)))
    assert binary.path == locate_qemu()
    assert binary.stamp == stamp_of(binary.path)


async def test_an_empty_path(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(HostError, match="qemu-system-x86_64 was not found on PATH") as missing:
        await find_qemu()
    assert "apt-get install" in missing.value.hint


@pytest.mark.parametrize("make", [None, "not executable", "a folder"])
async def test_a_configured_one_that_is_none(tmp_path, make) -> None:
    path = tmp_path / "qemu"
    if make == "not executable":
        path.write_text("#!/bin/sh\n")
    elif make == "a folder":
        path.mkdir()
    with pytest.raises(ConfigError) as wrong:
        await find_qemu(str(path))
    assert (wrong.value.field, wrong.value.value) == ("vm.qemu", str(path))


async def test_what_it_says_of_itself_is_kept(program) -> None:
    found = await find_qemu(program(f"echo '{DEBIAN}'\necho 'Copyright (c)'"))
    assert (found.version, found.release) == ("7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", (7, 2, 22))
    assert (found.incoming_is_file, found.opens_ram_readonly) == (False, False)


@pytest.mark.parametrize("version", ["5.2.0", "7.1.99", "6.0.0 (Debian 1:5.2)"])
async def test_too_old(program, version) -> None:
    with pytest.raises(HostError, match=f"is QEMU {version[:3]}, too old") as old:
        await find_qemu(program(f"echo 'QEMU emulator version {version}'"))
    assert "7.2 or newer" in old.value.hint


@pytest.mark.parametrize("said", ["", "GNU bash, version 5.2.15(1)-release", "QEMU emulator version unknown"])
async def test_nonsense(program, said) -> None:
    with pytest.raises(HostError, match="does not look like QEMU") as nonsense:
        await find_qemu(program(f"echo '{said}'"))
    assert nonsense.value.details().strip() == said


async def test_bytes_that_are_no_text(program) -> None:
    with pytest.raises(HostError, match="does not look like QEMU"):
        await find_qemu(program(r"printf '\377\376\000'"))


async def test_one_that_fails_shows_what_it_said(program) -> None:
    with pytest.raises(HostError, match=r"failed \(exit status 1\)") as failed:
        await find_qemu(program("echo 'symbol lookup error: libaio' >&2; exit 1"))
    assert "libaio" in failed.value.details()
    assert failed.value.hint


async def test_one_that_cannot_be_run(tmp_path) -> None:
    path = tmp_path / "qemu"
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)
    with pytest.raises(HostError, match="cannot run"):
        await find_qemu(str(path))


async def test_one_that_hangs_is_ended(program, tmp_path, monkeypatch) -> None:
    async def hang(limit_s: float) -> int:
        monkeypatch.setattr(qemu, "_PROBE_LIMIT_S", limit_s)
        with pytest.raises(HostError, match=f"did not end within {limit_s:g} s"):
            await find_qemu(program(f"echo $$ > {tmp_path}/pid; exec sleep 60"))
        return int((tmp_path / "pid").read_text())

    assert ProcessIdentity.of(await with_more_time(hang, 0.3, 10)) is None


async def test_a_cancelled_probe_leaves_no_process(program, tmp_path, until) -> None:
    pid = tmp_path / "pid"
    probe = asyncio.ensure_future(find_qemu(program(f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 60")))
    await until(pid.exists)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert ProcessIdentity.of(int(pid.read_text())) is None


async def test_it_is_asked_once_and_again_when_it_was_replaced(program, tmp_path) -> None:
    path = program(f"echo '{DEBIAN}'")
    first = await find_qemu(path)
    assert await find_qemu(path) == first
    assert run_count(tmp_path) == 1
    program("echo 'QEMU emulator version 8.2.1'")
    second = await find_qemu(path)
    assert (second.release, run_count(tmp_path)) == ((8, 2, 1), 2)
    assert second.stamp != first.stamp


async def test_the_very_file_of_before_is_not_run_again(program, tmp_path) -> None:
    path = program(f"echo '{DEBIAN}'")
    seen = await find_qemu(path)
    assert await find_qemu_like(str(seen.path), seen.version, seen.stamp, configured=path) == seen
    assert run_count(tmp_path) == 1


@pytest.mark.parametrize("change", ["stamp", "path"])
async def test_another_file_is_asked_for_its_version(program, tmp_path, change) -> None:
    path = program(f"echo '{DEBIAN}'")
    stamp, before = stamp_of(Path(path)), path
    if change == "stamp":
        program("echo 'QEMU emulator version 9.2.0'")
    else:
        before = "/usr/bin/another"
    found = await find_qemu_like(before, "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", stamp, configured=path)
    assert found.release == ((9, 2, 0) if change == "stamp" else (7, 2, 22))
    assert found.stamp == stamp_of(found.path)
    assert run_count(tmp_path) == 1


async def test_a_link_is_followed_so_that_an_upgrade_behind_it_is_seen(program, tmp_path) -> None:
    (tmp_path / "link").symlink_to(program(f"echo '{DEBIAN}'"))
    assert locate_qemu(str(tmp_path / "link")) == tmp_path / "qemu"
