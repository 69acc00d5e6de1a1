"""The build step makes agent and keeper for another machine too, static, without a warning."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# e_machine, elf(5). That of x86-64 is built by the set-up, and every machine of the tests runs it.
MACHINES = {"aarch64": 183}


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("vmfork_build", ROOT / "tools" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("program", ["guest", "keeper"])
def test_it_is_built_for(build, tmp_path, program, machine) -> None:
    """The first time in a checkout zig compiles musl too, half a minute; then it has it."""
    made = build.compile_program(ROOT / program, tmp_path / "made", target=f"{machine}-linux-musl").read_bytes()
    assert made[:6] == b"\x7fELF\x02\x01"
    assert int.from_bytes(made[18:20], "little") == MACHINES[machine]
    assert b"/lib/ld-" not in made  # no program interpreter: it needs nothing of the image
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_warning_is_an_error_and_leaves_nothing(build, tmp_path) -> None:
    with pytest.raises(build.BuildError, match="undeclared_function"):
        build.compile_program(ROOT / "guest", tmp_path / "made", defines=["strlen=undeclared_function"])
    assert list(tmp_path.iterdir()) == []
