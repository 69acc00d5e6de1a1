"""Each of twenty popular packages does its first real act in a fork: `make test-packages`."""

from __future__ import annotations

import pytest

from tests.packages.acts import ACTS, open_template, perform
from tests.vm.least import boots_in_its_least
from vmfork.image import ImageStore

# An image is built, tried out, frozen and forked, under emulation.
pytestmark = [pytest.mark.vm, pytest.mark.image, pytest.mark.limit_s(1800)]


@pytest.mark.parametrize("package", sorted(ACTS))
async def test_a_package_does_what_it_is_for(package, instance) -> None:
    act = ACTS[package]
    template = await open_template("acting", (package, *act.packages), instance)
    try:
        await perform(template, act)
        await boots_in_its_least("acting", instance)
    finally:
        await template.remove()
        ImageStore(instance.images).remove("acting")
