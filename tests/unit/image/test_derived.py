"""An image that was derived is found by what it is made of, and by the content of what it was derived from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.unit.image.samples import make_image
from vmfork.config import check_name
from vmfork.image.derived import is_derived, name_derived, name_packages

BASE = make_image(Path("nowhere"), name="default")


def test_its_name_is_that_of_its_packages_whatever_their_order() -> None:
    names = {name_derived(BASE, packages) for packages in (("git", "make"), ("make", "git"), ("git", "make", "bash"))}
    assert len(names) == 1  # bash is in the base
    assert names.pop().startswith("default.with-")


def test_it_is_another_for_other_packages_releases_and_bases() -> None:
    changed = [
        BASE,
        replace(BASE, requested=()),
        replace(BASE, bare=True),
        replace(BASE, suite="bookworm"),
        replace(BASE, name="other"),
        replace(BASE, digest="b" * 64),
    ]
    assert len({name_derived(base, ["git"]) for base in changed} | {name_derived(BASE, [])}) == len(changed) + 1
    check_name(name_derived(replace(BASE, name="x" * 64), ["git"]))


def test_it_tells_whether_its_base_is_still_the_same() -> None:
    name, rebuilt = name_derived(BASE, ["git"]), replace(BASE, digest="b" * 64)
    assert is_derived(name, BASE)
    assert not is_derived(name, rebuilt)
    assert name.startswith(name_packages(rebuilt, ["git"]))
    assert not name.startswith(name_packages(rebuilt, ["git", "make"]))
