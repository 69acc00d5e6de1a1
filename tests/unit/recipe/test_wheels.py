"""Wheels are asked for by the C library of the guest's Python, and nothing is fetched but wheels."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.wheels import make_wheel
from vmfork.errors import ConfigError
from vmfork.recipe import wheels
from vmfork.recipe.context import Context
from vmfork.recipe.step import Pip
from vmfork.recipe.wheels import GuestPython, fetch_wheels


def platforms(python: GuestPython) -> list[str]:
    options = python.to_options()
    return [options[at + 1] for at, option in enumerate(options) if option == "--platform"]


def test_wheels_for_musl_are_those_of_its_version_and_of_older_ones():
    assert platforms(GuestPython(3, 13, "x86_64", None, 2)) == [
        "musllinux_1_2_x86_64", "musllinux_1_1_x86_64", "musllinux_1_0_x86_64", "linux_x86_64",
    ]  # fmt: skip


def test_wheels_for_glibc_have_older_names_too():
    found = platforms(GuestPython(3, 11, "x86_64", 36))
    assert found[0] == "manylinux_2_36_x86_64"
    assert "manylinux2014_x86_64" in found


def test_of_another_library_only_what_says_no_library_fits():
    assert platforms(GuestPython(3, 11, "x86_64", None)) == ["linux_x86_64"]


async def fetch(wanted: tuple[str, ...], context: Context, folder: Path) -> list[str]:
    """What this host's pip leaves for a Python 3.11."""
    folder.mkdir()
    await fetch_wheels(Pip(wanted=wanted), GuestPython(3, 11, "x86_64", 36), context, folder)
    return sorted(path.name for path in folder.iterdir())


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
