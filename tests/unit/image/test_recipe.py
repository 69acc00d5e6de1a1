"""The digest's stability and sensitivity, and what the tables keep and drop."""

from __future__ import annotations

import pytest

from vmfork.config import ImageConfig
from vmfork.errors import HostError
from vmfork.image import recipe

CONFIG = ImageConfig(packages=("python3", "jq"))


def digest(config: ImageConfig = CONFIG, agent: bytes = b"agent") -> str:
    return recipe.compute_digest(config, agent)


def test_the_digest_is_a_sha256_and_repeats():
    assert len(digest()) == 64
    assert digest() == digest(ImageConfig(packages=("python3", "jq")))


@pytest.mark.parametrize(
    "packages",
    [("jq", "python3"), ("jq", "python3", "jq"), ("jq", "python3", "coreutils")],
    ids=["order", "twice", "there anyhow"],
)
def test_what_changes_nothing_leaves_the_digest(packages):
    assert digest(ImageConfig(packages=packages)) == digest()


@pytest.mark.parametrize(
    ("config", "agent"),
    [
        (ImageConfig(packages=("python3",)), b"agent"),
        (ImageConfig(packages=("python3", "jq"), suite="forky"), b"agent"),
        (CONFIG, b"another agent"),
    ],
    ids=["packages", "suite", "agent"],
)
def test_what_changes_the_image_changes_the_digest(config, agent):
    assert digest(config, agent) != digest()


@pytest.mark.parametrize("table", ["RECIPE_VERSION", "MODULES", "FILES", "DROPPED", "NOT_COMPILED"])
def test_the_recipe_is_part_of_the_digest(monkeypatch, table):
    before = digest()
    monkeypatch.setattr(recipe, table, type(getattr(recipe, table))())
    assert digest() != before


@pytest.mark.parametrize("changed", [source for source, *_ in recipe.SHIPPED])
def test_what_is_shipped_into_guests_is_part_of_the_digest(monkeypatch, changed):
    before, read = digest(), recipe.read_shipped
    monkeypatch.setattr(recipe, "read_shipped", lambda source: b"another" if source == changed else read(source))
    assert digest() != before


@pytest.mark.parametrize(
    "path",
    [
        "usr/share/doc",
        "usr/share/doc/bash/copyright",
        "usr/share/man/man1/ls.1.gz",
        "usr/lib/x86_64-linux-gnu/gconv/BIG5.so",
        "usr/lib/python3.13/test/support/__init__.py",
        "boot/vmlinuz",
        "var/lib/dpkg/status",
    ],
)
def test_dropped(path):
    assert recipe.is_dropped(path)


@pytest.mark.parametrize(
    "path",
    [
        "usr/share/documents",
        "usr/bin/ls",
        "usr/lib/x86_64-linux-gnu/gconv/gconv-modules",
        "usr/lib/x86_64-linux-gnu/gconv/ISO8859-1.so",
        "usr/lib/x86_64-linux-gnu/libc.so.6",
        "usr/lib/locale/C.utf8/LC_CTYPE",
        "usr/lib/python3.13/testing.py",
        "etc/passwd",
    ],
)
def test_kept(path):
    assert not recipe.is_dropped(path)


def test_an_agent_that_was_not_built_is_a_host_error(monkeypatch, tmp_path):
    monkeypatch.setattr(recipe.resources, "files", lambda _package: tmp_path)
    with pytest.raises(HostError) as caught:
        recipe.find_agent()
    assert "install vmfork again" in caught.value.hint


def test_the_agent_is_found_where_the_package_ships_it(monkeypatch, tmp_path):
    agent = tmp_path / "data" / "agent-x86_64"
    agent.parent.mkdir()
    agent.write_bytes(b"agent")
    monkeypatch.setattr(recipe.resources, "files", lambda _package: tmp_path)
    assert recipe.find_agent() == agent
