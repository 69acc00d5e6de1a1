"""The sources of agent and keeper are fit for another machine too."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vmfork.host.jail import find_preload

ROOT = Path(__file__).parents[3]

# e_machine of aarch64, elf(5). Those for x86-64 are built by the set-up, and every machine of the tests runs them.
AARCH64 = 183


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("vmfork_build", ROOT / "tools" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Builds elsewhere hold the lock of the common cache for as long as they take."""
    cache = str(tmp_path_factory.mktemp("zig"))
    for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):
        monkeypatch.setenv(name, cache)


@pytest.mark.limit_s(400)
@pytest.mark.parametrize("program", ["guest", "keeper", "preload", "fence", "broker", "copier"])
def test_every_source_compiles_for_aarch64(build, tmp_path, program) -> None:
    """Without a warning. It is not linked: for that zig would compile musl, half a minute in every checkout."""
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-Os", *build.FLAGS, "-c"]

    def compile_one(source: Path) -> int:
        out = tmp_path / f"{source.stem}.o"
        done = subprocess.run([*command, source, "-o", out], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return int.from_bytes(out.read_bytes()[18:20], "little")

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(compile_one, (ROOT / program).glob("*.c"))) == {AARCH64}


def test_the_library_beside_an_emulator_shows_it_nothing_but_what_it_answers() -> None:
    """Any other name of ours would stand before one of the emulator's libraries."""
    asked = "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); print([hasattr(library, x) for x in sys.argv[2:]])"
    names = ("read_descriptor", "close_all", "send_opened")
    done = subprocess.run(
        [sys.executable, "-c", asked, str(find_preload()), *names], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{[False] * 3}\n"
