"""Tests under KVM run directly where this host's KVM works, and in a test host where it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import SimpleNamespace

import pytest

KVM = Path(__file__).parents[3] / "tools" / "hosts" / "kvm"
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
    monkeypatch.setattr(tool, "run_here", lambda argv: ran.append(("here", argv)) or 5)
    monkeypatch.setattr(tool, "run_in_host", lambda *_, **__: ran.append(("host", ())) or 5)
    monkeypatch.setattr(tool, "count_tests", lambda marked: {"tests/a.py": 1})
    monkeypatch.setattr(tool, "run_at_once", lambda parts: max(part() for part in parts))
    monkeypatch.setattr(sys, "argv", ["kvm", *arguments])
    assert (tool.main(), {place for place, _ in ran}) == (5, {where})
    if where == "here":
        given = arguments[1:] or ["-m", "kvm", "tests/kvm", "tests/vm"]
        assert ran[0][1][-len(given) :] == given


def test_here_they_are_promised_a_kvm_and_their_status_is_given(monkeypatch) -> None:
    """In a process of its own: what it runs says so on standard output."""
    program = (
        "from importlib.machinery import SourceFileLoader as L; from importlib.util import *; import sys; "
        f"l = L('kvm', {str(KVM)!r}); m = module_from_spec(spec_from_loader('kvm', l)); l.exec_module(m); "
        f"sys.exit(m.run_here([sys.executable, '-c', {SAYS!r}]))"
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
