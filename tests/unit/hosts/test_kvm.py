"""Tests under KVM run directly where this host's KVM works, and in a test host where it does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from contextlib import nullcontext
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import SimpleNamespace

import pytest
from hosts import image, job
from hosts.machine import Outcome
from hosts.watch import HostDied, HostFailed

from tests.unit.image.samples import commit_image
from vmfork.image import ImageStore, write_least

KVM = Path(__file__).parents[3] / "tools" / "hosts" / "kvm"
ROAD = Path(__file__).parents[2] / "kvm"
SAYS = "import os, sys; print(os.environ['VMFORK_TEST_GUARANTEED'], os.getcwd()); sys.exit(3)"


@pytest.fixture
def tool(monkeypatch):
    loader = SourceFileLoader("vmfork_hosts_kvm", str(KVM))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it would lie beside the tools
    loader.exec_module(module)
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: None)  # what builds the package
    return module


@pytest.mark.parametrize(
    ("accel", "arguments", "where"),
    [
        ("kvm", [], "here"),
        ("kvm", ["--release", "bookworm"], "host"),
        ("tcg", [], "host"),
        ("kvm", ["--", "tests/x"], "here"),
    ],
)
def test_where_they_run(tool, monkeypatch, accel, arguments, where) -> None:
    ran = []
    plan = SimpleNamespace(hardware=SimpleNamespace(accel=accel), image="image")
    monkeypatch.setattr(tool, "open_plans", lambda names: nullcontext(dict.fromkeys(names, plan)))
    monkeypatch.setattr(tool, "run_here", lambda argv, *, images: ran.append(("here", argv)) or 5)
    monkeypatch.setattr(tool, "run_in_host", lambda *_, **__: ran.append(("host", ())) or 5)
    monkeypatch.setattr(tool, "count_tests", lambda marked: {"tests/a.py": 1})
    monkeypatch.setattr(tool, "run_at_once", lambda parts: max(part() for part in parts))
    monkeypatch.setattr(sys, "argv", ["kvm", *arguments])
    assert (tool.main(), {place for place, _ in ran}) == (5, {where})
    if where == "here":
        given = arguments[1:] or ["-m", "kvm", "tests/kvm", "tests/vm"]
        assert ran[0][1][-len(given) :] == given


DONE = Outcome(0, {})


@pytest.mark.parametrize(
    ("ends", "last"),
    [([HostDied, DONE], DONE), ([HostDied, HostDied], HostDied), ([HostFailed, DONE], HostFailed), ([DONE], DONE)],
)
def test_a_host_that_died_is_made_once_more_and_told_and_tests_that_hang_are_not(tool, capfd, ends, last) -> None:
    left = list(ends)

    def run() -> Outcome:
        end = left.pop(0)
        if end is DONE:
            return end
        raise end("its console")

    if last is DONE:
        assert tool.made_again(run) is DONE
    else:
        with pytest.raises(last):
            tool.made_again(run)
    assert left == ([DONE] if ends[0] is HostFailed else [])
    assert ("A TEST HOST DIED" in capfd.readouterr().err) == (ends[0] is HostDied)


def test_here_they_are_promised_a_kvm_and_their_status_is_given(monkeypatch) -> None:
    """In a process of its own: what it runs says so on standard output."""
    program = (
        "from importlib.machinery import SourceFileLoader as L; from importlib.util import *; import sys; "
        f"l = L('kvm', {str(KVM)!r}); m = module_from_spec(spec_from_loader('kvm', l)); l.exec_module(m); "
        f"sys.exit(m.run_here([sys.executable, '-c', {SAYS!r}], images=()))"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", program],
        env={**os.environ, "VMFORK_TEST_GUARANTEED": "mine"},
        capture_output=True,
        text=True,
        check=False,
    )
    promised, where = done.stdout.split()
    assert done.returncode == 3
    assert promised.split(",")[0] == "mine"
    assert "working-kvm" in promised.split(",")
    assert Path(where) == KVM.parents[2]


@pytest.fixture
def brought(tmp_path):
    """The images that were built and tried out for the tests, each with its least memory."""
    store = ImageStore(tmp_path / "kept" / "images")
    for name in image.ALL:
        disk = b"of files" * (name == image.ON_DISK)
        made = commit_image(store, name, initramfs=name.encode(), disk=disk)
        write_least(made.kernel.parent, 300, measured="for a test")
    return store.list_images()


def test_here_they_find_copies_of_the_images_that_were_brought(tool, brought, monkeypatch) -> None:
    seen = []

    def run(_argv, *, env, **_options):
        store = ImageStore(Path(env["VMFORK_TEST_HOME"], "images"))
        seen.append({one.name: one.min_memory_mib for one in store.list_images()})
        assert store.disks.sweep() == []
        store.verify(image.ON_DISK)
        store.remove(image.PACKED)
        seen.append(env)
        return SimpleNamespace(returncode=0)

    monkeypatch.delenv("VMFORK_TEST_HOME", raising=False)
    monkeypatch.setattr(tool.subprocess, "run", run)
    assert tool.run_here(["pytest"], images=brought) == 0
    found, env = seen
    assert found == dict.fromkeys(image.ALL, 300)
    assert "brought-images" in env["VMFORK_TEST_GUARANTEED"].split(",")
    assert not Path(env["VMFORK_TEST_HOME"]).exists()
    assert all(one.kernel.exists() for one in brought)  # what a test removes is its copy


def test_here_they_use_the_images_of_a_folder_that_is_named(tool, brought, tmp_path, monkeypatch) -> None:
    seen = []
    monkeypatch.setenv("VMFORK_TEST_HOME", str(tmp_path))
    monkeypatch.setattr(tool.subprocess, "run", lambda *_, env, **__: seen.append(env) or SimpleNamespace(returncode=0))
    assert tool.run_here(["pytest"], images=brought) == 0
    assert seen[0]["VMFORK_TEST_HOME"] == str(tmp_path)


def test_what_a_host_has_and_what_was_brought_may_not_be_skipped_there(brought) -> None:
    """All that tests of the main road ask for. The image with packages is brought where all of them run."""
    asked = {name for file in ROAD.glob("*.py") for name in re.findall(r'need\("([\w-]+)"', file.read_text())}
    for images in brought, [one for one in brought if one.name in image.FEWEST]:
        script = job._write_script(["pytest"], job.promise(images)).decode()
        (promised,) = re.findall(r"VMFORK_TEST_GUARANTEED=(\S+)", script)
        left = set() if len(images) == len(image.ALL) else {"brought-images"}
        assert asked - set(promised.split(",")) == left


def test_a_disk_gets_into_a_test_host_with_its_image_and_is_held_there(brought, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(job, "_FOLDER", str(tmp_path))
    with tarfile.open(tmp_path / "job.tar", "w") as tar:
        job._add_images(tar, brought)
    with tarfile.open(tmp_path / "job.tar") as tar:
        tar.extractall(tmp_path, filter="fully_trusted")
    store = ImageStore(tmp_path / "home" / "images")
    assert sorted(one.name for one in store.list_images()) == sorted(image.ALL)
    assert store.disks.sweep() == []
    store.verify(image.ON_DISK)
