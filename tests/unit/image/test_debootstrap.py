"""Failures told apart by what mmdebstrap and apt say. The messages are copied from real runs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from vmfork.errors import HostError, ImageError
from vmfork.image import debootstrap, recipe

END = "E: mmdebstrap failed to run"
CASES = [
    ("E: Unable to locate package nosuchpkg", ImageError, "no package named nosuchpkg"),
    ("E: Package 'mailx' has no installation candidate", ImageError, "no package named mailx"),
    ("Err:2 trixie InRelease\n  Temporary failure resolving 'example.invalid'", ImageError, "cannot be reached"),
    ("E: The repository 'x nosuite Release' does not have a Release file.", ImageError, "no release named 'trixie'"),
    ("  Error writing to file - write (28: No space left on device)", HostError, "no space is left on the disk at /"),
    ("E: You don't have enough free space in /x/archives/.", HostError, "no space is left on the disk at /"),
    ("E: Unable to correct problems, you have held broken packages.", ImageError, "cannot be installed together"),
    ("dpkg: error processing package foo (--configure):", ImageError, "the package foo could not be installed"),
    ("E: something new", ImageError, "exit status 25"),
    # A command that failed is quoted, and what it would have said is not what happened.
    ('E: setup failed: E: command failed: echo "E: Unable to locate package x" >&2', ImageError, "exit status 25"),
]


@pytest.mark.parametrize(("message", "kind", "want"), CASES)
def test_a_message_becomes_an_error(message, kind, want):
    error = debootstrap.explain_failure(f"I: start\n{message}\n{END}", 25, suite="trixie", folder=Path("/"))
    assert type(error) is kind
    assert want in str(error)
    assert error.hint
    assert message in error.details()


def test_every_missing_package_is_named():
    log = "E: Unable to locate package b\nE: Unable to locate package a"
    assert "a, b" in str(debootstrap.explain_failure(log, 25, suite="trixie", folder=Path("/")))


def test_without_mmdebstrap_the_hint_installs_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError) as caught:
        debootstrap.find_mmdebstrap()
    assert "apt-get install mmdebstrap" in caught.value.hint


@pytest.mark.parametrize("script", sorted(recipe.INSTALL.iterdir()), ids=lambda path: path.name)
def test_what_runs_in_a_build_is_a_shell_script(script):
    subprocess.run(["sh", "-n", script], check=True)


@pytest.mark.parametrize("ids", ["real", "faked"])
def test_the_scripts_find_what_they_read(ids):
    environ = debootstrap.build_environ(["dash"], ids=ids)
    read = set(re.findall(r"VMFORK_[A-Z_]+", "".join(path.read_text() for path in recipe.INSTALL.iterdir())))
    assert read - set(environ) == {"VMFORK_INSIDE"}


def test_the_scripts_get_nothing_of_the_owners_environment_but_proxies(monkeypatch):
    monkeypatch.setenv("API_KEY", "secret")
    monkeypatch.setenv("LD_PRELOAD", "/x.so")
    monkeypatch.setenv("http_proxy", "http://proxy.example:1")
    environ = debootstrap.build_environ(["dash"], ids="real")
    assert environ["http_proxy"] == "http://proxy.example:1"
    assert not {"API_KEY", "LD_PRELOAD", "HOME"} & set(environ)
