"""The agent's sources are fit for another machine too."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

(BUILD,) = Path(__file__).parents[3].glob("*/build.py")

# e_machine of aarch64, elf(5). The agent for x86-64 is built by the set-up, and every machine of the tests runs it.
AARCH64 = 183


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("guest_build", BUILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Builds elsewhere hold the lock of the common cache for as long as they take."""
    cache = str(tmp_path_factory.mktemp("zig"))
    for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):
        monkeypatch.setenv(name, cache)


def test_every_source_compiles_for_aarch64(build, tmp_path) -> None:
    """Without a warning. It is not linked: for that zig would compile musl, half a minute in every checkout."""
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-Os", *build.FLAGS, "-c"]

    def compile_one(source: Path) -> int:
        out = tmp_path / f"{source.stem}.o"
        done = subprocess.run([*command, source, "-o", out], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return int.from_bytes(out.read_bytes()[18:20], "little")

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(compile_one, build.sources())) == {AARCH64}
