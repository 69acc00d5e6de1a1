"""What an emulator reads is found once, kept for other processes, and found again where it cannot be trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmfork.hypervisor.qemu import files
from vmfork.hypervisor.qemu.binary import QemuBinary
from vmfork.hypervisor.qemu.files import Reads, find_reads

BINARY = QemuBinary(path=Path("/bin/sh"), version="7.2.22", release=(7, 2, 22), stamp="1")


@pytest.fixture
def found(monkeypatch) -> list[Path]:
    """Of what programs it was looked for."""
    programs: list[Path] = []

    async def find(program: Path) -> Reads:
        programs.append(program)
        return Reads(("/lib/one", "/share/two"))

    monkeypatch.setattr(files, "_find", find)
    monkeypatch.setattr(files, "_found", {})
    return programs


async def ask(kept: Path, monkeypatch) -> Reads:
    """As another process would."""
    monkeypatch.setattr(files, "_found", {})
    return await find_reads(BINARY, kept=kept)


async def test_it_is_found_once_for_all_processes(tmp_path, monkeypatch, found) -> None:
    kept = tmp_path / "emulators"
    first = await ask(kept, monkeypatch)
    assert await ask(kept, monkeypatch) == first
    assert found == [BINARY.path]


@pytest.mark.parametrize(
    "text", ["", "{", '{"paths": ["relative"], "format": 99}', '{"paths": 7, "format": 1}', '["/lib/one"]']
)
async def test_what_another_form_of_vmfork_kept_or_is_damaged_is_found_again(
    tmp_path, monkeypatch, found, text
) -> None:
    """A QEMU whose libraries are not all there would not start, at no try."""
    kept = tmp_path / "emulators"
    await ask(kept, monkeypatch)
    (record,) = kept.iterdir()
    assert json.loads(record.read_text())["format"] == Reads().format
    record.write_text(text)
    assert (await ask(kept, monkeypatch)).paths == ("/lib/one", "/share/two")
    assert len(found) == 2
    assert json.loads(record.read_text())["paths"] == ["/lib/one", "/share/two"]


async def test_a_folder_that_cannot_be_written_costs_a_search_and_nothing_else(tmp_path, monkeypatch, found) -> None:
    (tmp_path / "emulators").write_text("a file in its place")
    for _ in range(2):
        assert (await ask(tmp_path / "emulators", monkeypatch)).paths
    assert len(found) == 2
