"""The wheel, installed into a fresh environment, needs nothing of the checkout. `make wheels` makes all of them."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.vm.cli_runner import environment

ROOT = Path(__file__).parents[2]

_PROGRAM = """
import sys, vmfork
from vmfork.host import broker, keeper
from vmfork.image.recipe import find_agent
assert vmfork.__file__.startswith(sys.prefix), vmfork.__file__
for path in (keeper.find_keeper(), broker.find_broker(), find_agent()):
    assert str(path).startswith(sys.prefix), path
with vmfork.Template.open(sys.argv[1]).fork() as vm:
    print(vm.exec(["cat", "/root/marker"], check=True).stdout, end="")
with vmfork.Template.open(sys.argv[1]).start() as vm:
    vm.stop(grace_s=0)
"""


def run(*argv: str | Path, **options) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=240, **options)
    assert done.returncode == 0, done
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A fresh environment with the wheel in it, and what it needs of others from here: tests have no network."""
    folder = tmp_path_factory.mktemp("installed")
    (arch,) = {sysconfig.get_platform().rpartition("-")[2]}
    run(sys.executable, ROOT / "tools" / "wheels.py", "--out", folder / "dist", arch)
    (wheel,) = (folder / "dist").iterdir()
    assert wheel.name.endswith(f"-py3-none-manylinux_2_17_{arch}.manylinux2014_{arch}.whl")
    with zipfile.ZipFile(wheel) as files:
        assert not [name for name in files.namelist() if not name.startswith("vmfork")]
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env")
    python = folder / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", "--quiet", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "env"


@pytest.mark.vm
@pytest.mark.needs("wheels")
def test_the_wheel_alone_forks_and_starts_machines(installed: Path, template_name: str, tmp_path: Path) -> None:
    env = environment() | {"PYTHONSAFEPATH": "1"}
    assert run(installed / "bin" / "python", "-c", _PROGRAM, template_name, env=env, cwd=tmp_path) == "warm\n"
    told = run(installed / "bin" / "vmfork", "run", "-t", template_name, "--", "uname", "-s", env=env, cwd=tmp_path)
    assert told == "Linux\n"
