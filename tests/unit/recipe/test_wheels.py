"""Wheels are asked for by what the guest's Python and its C library are, and nothing is fetched but wheels."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from packaging.markers import default_environment

from tests.wheels import make_wheel
from vmfork.errors import ConfigError, HostError
from vmfork.recipe import wheels
from vmfork.recipe.context import Context
from vmfork.recipe.step import Pip
from vmfork.recipe.wheels import GuestPython, fetch_wheels, find_pip, read_python

# A Python that no host has: what its markers say is what those of this host's do not.
ENVIRONMENT = {
    "implementation_name": "cpython", "implementation_version": "3.31.4", "os_name": "posix",
    "platform_machine": "x86_64", "platform_release": "6.12-guest", "platform_system": "Linux",
    "platform_version": "#1", "python_full_version": "3.31.4", "platform_python_implementation": "CPython",
    "python_version": "3.31", "sys_platform": "linux",
}  # fmt: skip
GUEST, HOST = 'python_version >= "3.31"', 'python_version < "3.31"'


def platforms(python: GuestPython) -> list[str]:
    return list_values(python, "--platform")


def list_values(python: GuestPython, name: str) -> list[str]:
    options = python.to_options()
    return [options[at + 1] for at, option in enumerate(options) if option == name]


def test_wheels_for_musl_are_those_of_its_version_and_of_older_ones():
    assert platforms(GuestPython(ENVIRONMENT, None, 2)) == [
        "musllinux_1_2_x86_64", "musllinux_1_1_x86_64", "musllinux_1_0_x86_64", "linux_x86_64",
    ]  # fmt: skip


def test_wheels_for_glibc_have_older_names_too():
    found = platforms(GuestPython(ENVIRONMENT, 36))
    assert found[0] == "manylinux_2_36_x86_64"
    assert "manylinux2014_x86_64" in found


def test_of_another_library_only_what_says_no_library_fits():
    assert platforms(GuestPython(ENVIRONMENT)) == ["linux_x86_64"]


@pytest.mark.parametrize(("full", "told"), [("3.31.4", "3.31.4"), ("3.31.0rc1", "3.31.0"), ("3.31.2+", "3.31.2")])
def test_what_a_package_requires_of_python_is_compared_with_the_whole_version(full: str, told: str):
    python = GuestPython(ENVIRONMENT | {"python_full_version": full}, 36)
    assert list_values(python, "--python-version") == [told]
    assert list_values(python, "--abi") == ["cp331"]


def test_a_python_says_of_itself_what_its_markers_are_decided_by():
    script = (resources.files("vmfork.recipe") / "python" / "describe.py").read_text()
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60).stdout
    python = read_python(said)
    assert python.environment == default_environment()
    assert (python.version, python.machine) == (f"{sys.version_info[0]}.{sys.version_info[1]}", os.uname().machine)


@pytest.mark.parametrize(
    ("libc", "found"),
    [
        ("glibc 2.41", (41, None)),
        ("musl libc (x86_64)\nVersion 1.2.5\nDynamic Program Loader\n", (None, 2)),
        ("", (None, None)),
    ],
)
def test_the_c_library_is_what_it_says(libc: str, found: tuple[int | None, int | None]):
    python = read_python(json.dumps({"libc": libc, "environment": ENVIRONMENT}))
    assert (python.glibc, python.musl) == found


async def fetch(wanted: tuple[str, ...], context: Context, folder: Path) -> list[str]:
    """What this host's pip leaves for the guest's Python."""
    folder.mkdir()
    await fetch_wheels(Pip(wanted=wanted), GuestPython(ENVIRONMENT, 36), context, folder)
    return sorted(path.name for path in folder.iterdir())


async def fetch_names(wanted: tuple[str, ...], places: Path) -> list[str]:
    """The same, as names and versions."""
    found = await fetch(wanted, Context.of(places / "recipe"), places / "fetched")
    return ["-".join(name.split("-")[:2]) for name in found]


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The recipe's folder, and another one that is all that pip looks in."""
    for name in ("recipe", "wheels"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path


def make_package(folder: Path, built: Path) -> None:
    """A package whose build tells that it was run."""
    folder.mkdir()
    (folder / "setup.py").write_text(f"open({str(built)!r}, 'w').close()\nfrom setuptools import setup\nsetup()\n")


async def test_a_folder_is_refused_and_its_build_is_not_run(places):
    context, built = Context.of(places / "recipe"), places / "built"
    make_package(places / "recipe" / "pkg", built)
    (places / "recipe" / "reqs.txt").write_text("./pkg\n")
    for number, wanted in enumerate(("./pkg", "reqs.txt", f"pkg @ file://{places}/recipe/pkg")):
        with pytest.raises(ConfigError, match="pip would build it on this host"):
            await fetch((wanted,), context, places / str(number))
    assert not built.exists()


async def test_wheels_are_fetched_and_nothing_is_right_where_a_marker_leaves_all_out(places):
    context = Context.of(places / "recipe")
    make_wheel(places / "wheels", "greet", needs=("base",))
    make_wheel(places / "wheels", "base")
    make_wheel(places / "recipe", "local")
    (places / "recipe" / "none.txt").write_text('none-such; python_version < "3"\n')
    wanted = ("greet", "local-1.0-py3-none-any.whl", "none.txt")
    assert [name.partition("-")[0] for name in await fetch(wanted, context, places / "one")] == [
        "base",
        "greet",
        "local",
    ]
    assert await fetch(("none.txt",), context, places / "none") == []


async def test_pip_that_leaves_nothing_or_what_is_no_wheel_is_an_error(places, monkeypatch):
    """A pip of the user's own: its settings may say what they like."""
    context, left = Context.of(places / "recipe"), places / "left"
    script = 'import os, sys; at = sys.argv[sys.argv.index("--dest") + 1]; [open(f"{at}/{n}", "w") for n in os.listdir('
    monkeypatch.setattr(wheels, "find_pip", lambda: [sys.executable, "-c", f"{script}{str(left)!r})]"])
    left.mkdir()
    with pytest.raises(ConfigError, match="pip fetched nothing"):
        await fetch(("greet",), context, places / "one")
    (left / "pkg-1.0.zip").touch()
    with pytest.raises(ConfigError, match=r"pip fetched pkg-1\.0\.zip, which is no wheel"):
        await fetch(("greet",), context, places / "two")


async def test_what_a_package_needs_is_what_the_guests_python_asks_for(places):
    """All the way down, with the extras of what is wanted and of what is needed; `gone` is nowhere."""
    needs = (
        f"new; {GUEST}", f"gone; {HOST}", f'extra; {GUEST} and extra == "x"', f'gone; {HOST} and extra == "x"',
        'gone; extra == "y"', 'kernel; platform_release == "6.12-guest"', 'gone; platform_release != "6.12-guest"',
    )  # fmt: skip
    wheels = places / "wheels"
    make_wheel(wheels, "greet", needs=needs, extras=("x", "y"))
    make_wheel(wheels, "new", needs=(f"deep[fast]; {GUEST}",))
    make_wheel(wheels, "deep", needs=('speed; python_full_version == "3.31.4" and extra == "fast"',), extras=("fast",))
    for name in ("extra", "kernel", "speed"):
        make_wheel(wheels, name)
    assert await fetch_names(("greet[x]",), places) == [
        "deep-1.0", "extra-1.0", "greet-1.0", "kernel-1.0", "new-1.0", "speed-1.0",
    ]  # fmt: skip


async def test_versions_are_those_that_fit_what_the_guests_python_asks_for(places):
    """Those of the host's exclude them; and the newest of `second` does not fit, so that an older one is taken."""
    wheels = places / "wheels"
    make_wheel(wheels, "first", needs=(f"base<2; {HOST}", f"base>=2; {GUEST}"))
    make_wheel(wheels, "second", "2.0", needs=(f"base<2; {GUEST}",))
    make_wheel(wheels, "second", "1.0")
    for version in ("1.0", "2.0"):
        make_wheel(wheels, "base", version)
    assert await fetch_names(("first", "second"), places) == ["base-2.0", "first-1.0", "second-1.0"]


async def test_markers_of_a_step_its_files_and_their_limits_are_the_guests(places):
    recipe, wheels = places / "recipe", places / "wheels"
    for version in ("1.0", "2.0", "3.0"):
        make_wheel(wheels, "base", version)
        make_wheel(wheels, "limited", version)
    for name in ("word", "below"):
        make_wheel(wheels, name)
    (recipe / "reqs.txt").write_text(f"base==1.0 ; {HOST}\nbase==2.0 ; {GUEST}\nlimited\n-r more.txt\n-c limits.txt\n")
    (recipe / "more.txt").write_text(f"below; {GUEST}\ngone; {HOST}\n")
    (recipe / "limits.txt").write_text(f"limited<2; {HOST}\nlimited<3; {GUEST}\n")
    wanted = ("reqs.txt", f"word; {GUEST}", f"gone; {HOST}")
    assert await fetch_names(wanted, places) == ["base-2.0", "below-1.0", "limited-2.0", "word-1.0"]


async def test_a_file_with_hashes_has_what_the_guests_python_asks_for_or_is_refused(places):
    wheels, recipe = places / "wheels", places / "recipe"
    greet = make_wheel(wheels, "greet", needs=(f"new>=1; {GUEST}", f"gone; {HOST}"))
    new = make_wheel(wheels, "new")
    hashes = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in (greet, new)}
    alone = f"greet==1.0 --hash=sha256:{hashes[greet]}\ngone==1.0 ; {HOST} --hash=sha256:{'0' * 64}\n"
    (recipe / "whole.txt").write_text(alone + f"new==1.0 ; {GUEST} \\\n    --hash=sha256:{hashes[new]}\n")
    (recipe / "alone.txt").write_text(alone)
    (recipe / "other.txt").write_text(alone + f"new==1.0 ; {GUEST}\n")
    assert await fetch_names(("whole.txt",), places) == ["greet-1.0", "new-1.0"]
    for name in ("alone", "other"):
        with pytest.raises(ConfigError, match=r"no version with a hash is given for new") as refused:
            await fetch((f"{name}.txt",), Context.of(recipe), places / name)
        assert "Python 3.31" in refused.value.hint


async def test_what_the_guests_python_asks_for_and_is_nowhere_is_named_with_what_needs_it(places):
    """Older versions of pip say its marker, newer ones do not."""
    make_wheel(places / "wheels", "greet", needs=(f"gone>=2; {GUEST}",))
    with pytest.raises(ConfigError, match=r"no wheel of gone>=2 .*is for Python 3\.31 on x86_64") as refused:
        await fetch_names(("greet",), places)
    assert "(from greet)" in "".join(refused.value.__notes__)


async def test_a_pip_that_is_set_to_another_python_is_told_too(places, monkeypatch):
    monkeypatch.setenv("PIP_PYTHON", sys.executable)
    make_wheel(places / "wheels", "greet", needs=(f"new; {GUEST}",))
    make_wheel(places / "wheels", "new")
    assert await fetch_names(("greet",), places) == ["greet-1.0", "new-1.0"]


@pytest.mark.parametrize("also", ["", "."])
async def test_modules_that_lie_in_the_recipes_folder_are_not_run(places, monkeypatch, also: str):
    monkeypatch.setenv("PYTHONPATH", also)
    make_wheel(places / "wheels", "greet")
    for name in ("pip", "json", "runpy"):
        (places / "recipe" / f"{name}.py").write_text(f"open({str(places / 'run')!r}, 'w').close()\n")
    assert await fetch_names(("greet",), places) == ["greet-1.0"]
    assert not (places / "run").exists()


ANSWERS = "class Requirement:\n    def __init__(self, text): self.marker = self\n    def evaluate(self): return {}\n"


@pytest.mark.parametrize("modules", [{}, {"markers": "", "requirements": ANSWERS.format("False")}])
async def test_a_pip_that_cannot_be_told_is_not_run(places, monkeypatch, modules: dict[str, str]):
    pip = places / "other" / "pip"
    for folder in (pip, pip / "_vendor", pip / "_vendor" / "packaging"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    for name, text in modules.items():
        (pip / "_vendor" / "packaging" / f"{name}.py").write_text(text)
    (pip / "__main__.py").write_text(f"open({str(places / 'run')!r}, 'w').close()\n")
    monkeypatch.setenv("PYTHONPATH", str(places / "other"))
    with pytest.raises(HostError, match="cannot be told for which Python"):
        await fetch_names(("greet",), places)
    assert not (places / "run").exists()


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("#!/opt/py/bin/python3.12", ["/opt/py/bin/python3.12"]),
        ("#!/usr/bin/env python3", ["/usr/bin/env", "python3"]),
        ("#!/usr/bin/python3 -sP", ["/usr/bin/python3", "-sP"]),
        ("#!/usr/bin/env bash", ["{path}/python3"]),
        ("#!/bin/sh 'x", ["{path}/python3"]),
        ("\x7fELF", ["{path}/python3"]),
    ],
)
def test_of_path_the_python_that_runs_its_pip_is_taken(tmp_path, monkeypatch, line: str, command: list[str]):
    other = tmp_path / "other"  # whose Python comes first, and has no pip
    other.mkdir()
    for path, text in ((tmp_path / "pip3", line), (tmp_path / "python3", ""), (other / "python3", "")):
        path.write_text(f"{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{other}:{tmp_path}")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert find_pip() == [word.format(path=tmp_path) for word in command]


def test_without_any_pip_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(HostError, match="pip was not found") as refused:
        find_pip()
    assert "python3-pip" in refused.value.hint
