"""The image of a recipe with packages is found by what it is made of."""

from __future__ import annotations

from vmfork.config import ImageConfig, check_name
from vmfork.recipe.derive import list_packages, name_derived
from vmfork.recipe.words import read_steps


def test_its_name_is_that_of_its_packages_whatever_their_order() -> None:
    one, other = ({"packages": ["git", "make"]}, {"packages": ["make", "git", "git"]})
    assert list_packages(read_steps([one])) == list_packages(read_steps([other])) == ("git", "make")
    names = {
        name_derived("default", ImageConfig(packages=("git", "make"))),
        name_derived("default", ImageConfig(packages=("make", "git"))),
    }
    assert len(names) == 1
    assert names.pop().startswith("default.with-")


def test_it_is_another_for_other_packages_releases_and_bases() -> None:
    configs = [
        ("default", ImageConfig()),
        ("default", ImageConfig(packages=("git",))),
        ("default", ImageConfig(packages=("git",), bare=True)),
        ("default", ImageConfig(packages=("git",), suite="bookworm")),
        ("other", ImageConfig(packages=("git",))),
    ]
    assert len({name_derived(*each) for each in configs}) == len(configs)
    check_name(name_derived("x" * 64, ImageConfig()))
