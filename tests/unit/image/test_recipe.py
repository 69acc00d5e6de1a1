"""The digest's stability and sensitivity, and what the tables keep and drop."""

from __future__ import annotations

import pytest

from vmfork.config import ImageConfig
from vmfork.errors import HostError
from vmfork.image import recipe

CONFIG = ImageConfig(packages=("git", "jq"))


def digest(config: ImageConfig = CONFIG, agent: bytes = b"agent") -> str:
    return recipe.compute_digest(config, agent)


def test_the_digest_is_a_sha256_and_repeats():
    assert len(digest()) == 64
    assert digest() == digest(ImageConfig(packages=("git", "jq")))


@pytest.mark.parametrize(
    "packages",
    [("jq", "git"), ("jq", "git", "jq"), ("jq", "git", "coreutils"), ("git",)],
    ids=["order", "twice", "there anyhow", "of the default image"],
)
def test_what_changes_nothing_leaves_the_digest(packages):
    assert digest(ImageConfig(packages=packages)) == digest()


@pytest.mark.parametrize(
    ("config", "agent"),
    [
        (ImageConfig(), b"agent"),
        (ImageConfig(packages=("git", "jq"), suite="forky"), b"agent"),
        (ImageConfig(packages=("git", "jq"), bare=True), b"agent"),
        (CONFIG, b"another agent"),
    ],
    ids=["packages", "suite", "bare", "agent"],
)
def test_what_changes_the_image_changes_the_digest(config, agent):
    assert digest(config, agent) != digest()


@pytest.mark.parametrize("table", ["RECIPE_VERSION", "MODULES", "FILES", "LINKS", "NOT_COMPILED", "EPOCH"])
def test_the_recipe_is_part_of_the_digest(monkeypatch, table):
    before = digest()
    monkeypatch.setattr(recipe, table, type(getattr(recipe, table))())
    assert digest() != before


@pytest.mark.parametrize("changed", [source for source, *_ in recipe.SHIPPED])
def test_what_is_shipped_into_guests_is_part_of_the_digest(monkeypatch, changed):
    before, read = digest(), recipe.read_shipped
    monkeypatch.setattr(recipe, "read_shipped", lambda source: b"another" if source == changed else read(source))
    assert digest() != before


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


@pytest.mark.parametrize(
    ("config", "slim"),
    [
        (ImageConfig(), True),
        (ImageConfig(bare=True), True),
        (ImageConfig(bare=True, packages=("jq",)), True),
        (ImageConfig(packages=("git",)), False),
        (ImageConfig(bare=True, packages=("git",)), False),
    ],
)
def test_only_what_was_looked_through_does_without_essential_packages(config, slim):
    assert recipe.is_slim(config) == slim


def test_packages_are_added_to_those_of_the_default_image():
    assert set(recipe.list_packages(ImageConfig(packages=("git",)))) == {
        "git",
        *recipe.BASE_PACKAGES,
        *recipe.DEFAULT_PACKAGES,
    }
    assert set(recipe.list_packages(ImageConfig(packages=("git",), bare=True))) == {"git", *recipe.BASE_PACKAGES}
