"""What is told of a device node that does not serve: which of many ways, and what mends it."""

from __future__ import annotations

import errno
import os

import pytest

from vmfork.host import kvm


def test_a_device_that_opens_is_not_refused(monkeypatch, tmp_path) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(kvm, "DEVICE", tmp_path / "kvm")
    assert kvm.find_refusal() is None


@pytest.mark.parametrize(
    ("code", "reason", "todo", "forbidden"),
    [
        (errno.ENOENT, "does not exist", "virtualization", False),
        (errno.ENODEV, "no KVM module is loaded", "kvm_amd", False),
        (errno.ENXIO, "no KVM module is loaded", "kvm_amd", False),
        (errno.EMFILE, "Too many open files", "", False),
        (errno.EACCES, "may not be opened by", "kvm", True),
        (errno.EPERM, "may not be opened by", "kvm", True),
    ],
)
def test_each_refusal_says_why_and_what_to_do(monkeypatch, code, reason, todo, forbidden) -> None:
    def refuse(*_arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(kvm.os, "open", refuse)
    refusal = kvm.find_refusal()
    assert refusal is not None
    assert reason in refusal.reason
    assert todo in refusal.todo
    assert refusal.forbidden == forbidden


@pytest.mark.needs("root")
@pytest.mark.parametrize(("mode", "todo"), [(0o660, "sudo usermod -aG "), (0o600, "sudo setfacl -m u:")])
def test_an_ordinary_user_is_told_the_command(monkeypatch, tmp_path, mode, todo) -> None:
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(mode)
    os.chown(device, -1, 1)
    monkeypatch.setattr(kvm, "DEVICE", device)
    monkeypatch.setattr(kvm.os, "geteuid", lambda: 65534)
    assert kvm._how_to_permit().startswith(todo)


def test_module_parameters_are_read_where_there_are_any(monkeypatch, tmp_path) -> None:
    folder = tmp_path / "kvm_amd" / "parameters"
    folder.mkdir(parents=True)
    (folder / "npt").write_text("Y\n")
    monkeypatch.setattr(kvm, "_MODULES", tmp_path)
    assert kvm.read_parameters() == {"kvm_amd/npt": "Y"}
