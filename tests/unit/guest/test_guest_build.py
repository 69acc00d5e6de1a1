"""The build step makes an agent for another machine too, static, without a warning."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

(BUILD,) = Path(__file__).parents[3].glob("*/build.py")

# e_machine, elf(5). That of x86-64 is built by the set-up, and every machine of the tests runs it.
MACHINES = {"aarch64": 183}


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("guest_build", BUILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("machine", MACHINES)
def test_it_is_built_for(build, tmp_path, machine) -> None:
    """The first time in a checkout zig compiles musl too, half a minute; then it has it."""
    made = build.build_agent(tmp_path / "agent", target=f"{machine}-linux-musl").read_bytes()
    assert made[:6] == b"\x7fELF\x02\x01"
    assert int.from_bytes(made[18:20], "little") == MACHINES[machine]
    assert b"/lib/ld-" not in made  # no program interpreter: it needs nothing of the image
    assert [path.name for path in tmp_path.iterdir()] == ["agent"]


def test_a_warning_is_an_error_and_leaves_nothing(build, tmp_path) -> None:
    with pytest.raises(build.BuildError, match="undeclared_function"):
        build.build_agent(tmp_path / "agent", defines=["strlen=undeclared_function"])
    assert list(tmp_path.iterdir()) == []
