"""The installer that goes into a guest, in a Python of its own on this host: what pip would have done."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib import resources

import pytest

from tests.wheels import make_wheel

INSTALLER = (resources.files("vmfork.recipe") / "python" / "install_wheels.py").read_text()


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python without any package."""
    folder = tmp_path_factory.mktemp("python")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    return folder / "bin" / "python"


def install(python, wheels) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-c", INSTALLER, wheels], check=False, capture_output=True, text=True, timeout=60)


def say(*argv) -> str:
    """What it prints; bytecode is kept, whatever this process was told of that."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run([*map(str, argv)], capture_output=True, text=True, check=True, timeout=60, env=env).stdout


def test_modules_scripts_and_records_are_as_they_should_be(python, tmp_path) -> None:
    files = {"{data}/scripts/plain": "#!python\nimport greet; greet.main()\n", "{data}/data/share/greet.txt": "hi"}
    make_wheel(tmp_path, "greet", files=files, scripts="greet = greet:main\nlong = greet:main [extra]")
    assert install(python, tmp_path).returncode == 0
    for script in ("greet", "long", "plain"):
        assert say(python.parent / script) == "greet 1.0\n"
    assert (python.parents[1] / "share" / "greet.txt").read_text() == "hi"
    ask = "from importlib.metadata import files; print(all(file.locate().exists() for file in files('greet')))"
    assert say(python, "-c", ask) == "True\n"


def test_another_version_takes_the_place_of_the_former_one(python, tmp_path) -> None:
    """In the same second too: Python would take the bytecode of the former."""
    for version, extra in (("1.0", "greet_old.py"), ("2.0", "greet_new.py")):
        folder = tmp_path / version
        folder.mkdir()
        make_wheel(folder, "greet", version, files={extra: ""})
        assert install(python, folder).returncode == 0
        source = say(python, "-B", "-c", "from importlib.util import find_spec; print(find_spec('greet').origin)")
        os.utime(source.strip(), (1_000_000_000, 1_000_000_000))
        assert say(python, "-c", "import greet; print(greet.VERSION)") == f"{version}\n"
    ask = "import greet, greet_new; from importlib.util import find_spec; print(greet.VERSION, find_spec('greet_old'))"
    assert say(python, "-c", ask) == "2.0 None\n"


def test_a_wheel_that_leads_out_of_its_place_is_refused(python, tmp_path) -> None:
    path = make_wheel(tmp_path, "evil", files={"../../../evil.txt": "x"})
    refused = install(python, tmp_path)
    assert refused.returncode == 1
    assert "leads out of" in refused.stderr
    assert not (python.parents[1] / "evil.txt").exists()
    assert zipfile.is_zipfile(path)
