"""The demo fails when a result is wrong, forks share random bytes, or anything is left. Its machines here are fakes."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import vmfork

DEMO = Path(__file__).parents[3] / "examples" / "demo.py"


class FakeVM:
    """A machine that does as the demo asks, but for `wrong`, `shares` and what it leaves."""

    accel = "tcg"

    def __init__(self, number: int, world: World) -> None:
        self.id, self.hostname, self.pid = f"id-{number}", f"vm-{number}", 2**22 + number
        self._number, self._world = number, world
        self._files: dict[str, str] = {}

    def __enter__(self):
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def close(self) -> None:
        self._world.closed.append(self.id)

    def memory(self):
        return SimpleNamespace(guest_shared=1, guest_private=1, private=1)

    def write_file(self, path: str, text: str, *, parents: bool = False) -> None:
        self._files[path] = text

    def exec(self, argv, *, timeout_s: float | None = None, check: bool = False):
        if argv[0] == "head":
            return SimpleNamespace(stdout_bytes=bytes(64) if self._world.shares else os.urandom(64))
        if argv[0] == "true":
            return None
        done = self._world.compute(json.loads(self._files["/work/input.json"]))
        if self._world.wrong == self._number:
            done["primes"] += 1
        return SimpleNamespace(stdout=json.dumps(done))


class World:
    def __init__(self, compute) -> None:
        self.compute = compute
        self.wrong, self.shares = -1, False
        self.made = 0
        self.closed: list[str] = []
        self.removed = False

    def fork(self) -> FakeVM:
        self.made += 1
        return FakeVM(self.made - 1, self)

    def remove(self) -> None:
        self.removed = True


@pytest.fixture
def demo(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    places = vmfork.Places(tmp_path / "home", tmp_path / "run")
    monkeypatch.setattr(vmfork, "find_places", lambda: places)
    module.world = World(module.expected)
    monkeypatch.setattr(vmfork.Template, "build", lambda *_a, **_k: module.world)
    monkeypatch.setattr(vmfork.VM, "boot", lambda *_a, **_k: FakeVM(-1, module.world))
    module.places = places
    return module


def test_it_is_content_when_all_is_well(demo, capsys) -> None:
    assert demo.main() == 0
    assert "nothing left behind" in capsys.readouterr().out
    assert len(set(demo.world.closed)) == demo.FORKS + 1
    assert demo.world.removed


def test_a_wrong_result_fails_it(demo, capsys) -> None:
    demo.world.wrong = 3
    assert demo.main() == 1
    assert "error: fork 3 computed" in capsys.readouterr().err
    assert len(set(demo.world.closed)) == demo.FORKS + 1


def test_shared_random_bytes_fail_it(demo, capsys) -> None:
    demo.world.shares = True
    assert demo.main() == 1
    assert "error: fork 1 drew random bytes another fork drew before" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["process", "machine", "template"])
def test_what_is_left_fails_it(demo, capsys, monkeypatch, what) -> None:
    if what == "process":
        monkeypatch.setattr(FakeVM, "__init__", _with_our_pid(FakeVM.__init__))
    elif what == "machine":
        (demo.places.vms / "id-4").mkdir(parents=True)
    else:
        (demo.places.templates / demo.TEMPLATE).mkdir(parents=True)
    assert demo.main() == 1
    assert "error: left behind: " in capsys.readouterr().err


def _with_our_pid(init):
    def begin(self, *arguments) -> None:
        init(self, *arguments)
        self.pid = os.getpid()

    return begin


def test_the_work_is_right(demo, tmp_path, monkeypatch, capsys) -> None:
    """What the machines run gives what the host expects, computed in another way."""
    numbers = demo.make_input(7)
    (tmp_path / "input.json").write_text(json.dumps(numbers))
    exec(demo.SCRIPT.replace("/work/input.json", str(tmp_path / "input.json")), {"sys": sys})
    assert json.loads(capsys.readouterr().out) == demo.expected(numbers)
