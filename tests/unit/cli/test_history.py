"""What a template was made by is told step by step, with what is kept of each; and all that is kept can be removed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os

import pytest

from tests.unit.store.samples import build_small
from vmfork.cli.main import main
from vmfork.config import find_places
from vmfork.image import DiskStore
from vmfork.store import TemplateStore
from vmfork.store.manifest import DoneStep
from vmfork.units import MIB

DATA = os.urandom(2 * MIB - (64 << 10))  # the file system takes a little for itself
DISK = hashlib.sha256(DATA).hexdigest()
KEPT, GONE = "a" * 64, "b" * 64
STEPS = (
    DoneStep(step="pip flask", took_s=4.5, layer=KEPT, reused=True),
    DoneStep(step="run make", took_s=2.5, layer=GONE),
    DoneStep(step="run true", took_s=0.25),
)


@pytest.fixture
def layers(tmp_path, monkeypatch):
    """Those of two templates, `web` and `shop`, which have one that is kept in common; another of `web` is gone."""
    monkeypatch.setenv("VMFORK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VMFORK_RUNTIME_DIR", str(tmp_path / "run"))
    templates, layers = TemplateStore(find_places().templates), TemplateStore(find_places().layers)
    asyncio.run(build_small(templates, "web", steps=STEPS, layers=(KEPT, GONE)))
    asyncio.run(build_small(templates, "shop", steps=STEPS[:1], layers=(KEPT,)))
    disks, path = DiskStore(find_places().disks), tmp_path / "disk"
    path.write_bytes(DATA)
    disks.add(path, DISK)
    generation = asyncio.run(build_small(layers, KEPT, memory_allocated_bytes=100 * MIB, disk_mib=64, disk_sha256=DISK))
    disks.hold_for(layers.folder / KEPT / generation, DISK, image="default")
    yield layers
    templates.clear()
    layers.clear()


def test_a_template_tells_its_steps_and_what_is_kept_of_each(layers, capsys) -> None:
    assert main(["template", "history", "web", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["template"] == "web"
    assert [
        (each["step"], each["took_s"], each["mib"], each["disk_mib"], each["shared_with"]) for each in told["steps"]
    ] == [
        ("pip flask", 4.5, 100, 2, ["shop"]),
        ("run make", 2.5, 0, 0, []),
        ("run true", 0.25, 0, 0, []),
    ]
    assert main(["template", "history", "web"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[1].split(), lines[3].split()] == [
        ["1", "pip", "flask", "4.5", "s", "(before)", "a" * 12, "100", "MiB", "+", "2", "MiB", "of", "disk", "shop"],
        ["3", "run", "true", "250.0", "ms"],
    ]
    assert main(["template", "history", "none", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "template-not-found"


def test_layers_are_removed_where_that_is_asked_and_no_template_is(layers, capsys) -> None:
    both = [str(layers.folder / KEPT), str(find_places().disks / DISK)]
    for argv, removed in (
        (["gc", "--json"], []),
        (["gc", "--layers", "--dry-run", "--json"], both),
        (["gc", "--layers", "--json"], both),
        (["gc", "--layers", "--json"], []),
    ):
        assert main(argv) == 0
        assert json.loads(capsys.readouterr().out)["removed"] == removed
    assert layers.list_names() == []
    assert main(["template", "ls"]) == 0
    assert "web" in capsys.readouterr().out


def test_the_last_template_that_was_made_of_a_layer_takes_it_along(layers, capsys) -> None:
    assert main(["template", "rm", "web"]) == 0
    assert layers.list_names() == [KEPT]
    assert DiskStore(find_places().disks).find_waste() == []
    assert main(["template", "rm", "shop"]) == 0
    assert (layers.list_names(), (find_places().disks / DISK).exists()) == ([], False)
