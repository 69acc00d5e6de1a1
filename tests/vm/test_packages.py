"""Three small packages in one image do their first real act in a fork. `make test-packages` has twenty."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.packages.acts import ACTS, open_template, perform
from tests.vm.cli_runner import vmfork
from tests.vm.least import boots_in_its_least
from vmfork.aio import Template
from vmfork.image import ImageStore

pytestmark = [pytest.mark.vm, pytest.mark.image]

SMALL = ("git", "sqlite3", "sudo")


@pytest.fixture(scope="module")
def acting(instance):
    template = asyncio.run(open_template("acting", SMALL, instance))
    yield template
    asyncio.run(template.remove())
    ImageStore(instance.images).remove("acting")


@pytest.mark.parametrize("package", SMALL)
async def test_a_small_package_does_what_it_is_for(acting, package) -> None:
    await perform(acting, ACTS[package])


async def test_the_image_boots_in_exactly_its_least_memory(acting, instance) -> None:
    await boots_in_its_least("acting", instance)


async def test_the_image_is_a_debian_whose_packages_are_known(acting) -> None:
    async with await acting.fork() as vm:
        known = await vm.exec(["dpkg-query", "--show", "--showformat=${Status}", "git"], check=True, timeout_s=60)
        assert known.stdout == "install ok installed"
        assert (await vm.stat("/etc/passwd")).mode & 0o777 == 0o644
        assert (await vm.stat("/etc/shadow")).mode & 0o777 == 0o640


async def test_without_a_word_of_memory_its_machines_have_what_it_needs(acting, instance) -> None:
    least = ImageStore(instance.images).open("acting").min_memory_mib
    built = await asyncio.to_thread(vmfork, "template", "build", "mine", "--image", "acting", "--json")
    try:
        assert json.loads(built.check().out)["memory_mib"] == max(256, least)
        done = await asyncio.to_thread(vmfork, "run", "-t", "mine", "git", "--version")
        assert done.check().out.startswith("git version")
    finally:
        await (await Template.open("mine")).remove()
