"""The outer factory over its bases: what it gives runs, is adopted, and is what was asked for."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from vmfork.aio import Factory, Template
from vmfork.config import FactoryConfig, Instance, VMConfig, find_places
from vmfork.errors import TemplateNotFound
from vmfork.image import ImageStore
from vmfork.image.record import RECORD_NAME, encode_record
from vmfork.machine.prepare import prepare

pytestmark = [pytest.mark.vm, pytest.mark.kvm, pytest.mark.limit_s(900)]

# In a test host (tools/hosts/kvm) that others keep busy a boot takes a minute.
LIMIT_S = 240.0


async def test_direct_gives_running_machines(template_name) -> None:
    async with Factory(FactoryConfig()) as factory, await factory.get_vm() as vm:
        assert vm.template == ""
        assert (await vm.exec(["hostname"])).stdout.strip() == vm.hostname
    assert (factory.stats().requests, factory.stats().fallbacks) == (1, {})


async def test_template_forks_and_falls_back_with_the_reason(template_name) -> None:
    config = FactoryConfig(template=True)
    with pytest.raises(TemplateNotFound):
        await Factory(config, fetch_only=True).open()
    async with Factory(config) as factory:
        try:
            async with await factory.get_vm() as vm:
                assert vm.template == config.template_name
            async with await factory.get_vm(VMConfig(memory_mib=320)) as vm:
                assert vm.template == ""
                assert (await vm.exec(["hostname"])).stdout.strip() == vm.hostname
            stats = factory.stats()
            assert (stats.requests, stats.from_base, stats.fallbacks) == (2, 1, {"memory_mib": 1})
            generation = (await Template.open(config.template_name)).generation
            async with Factory(config) as again, await again.get_vm() as vm:
                assert vm.template == config.template_name
                assert (await Template.open(config.template_name)).generation == generation
            async with Factory(config, fetch_only=True) as fetched, await fetched.get_vm() as vm:
                assert vm.template == config.template_name
        finally:
            await (await Template.open(config.template_name)).remove()


async def test_the_factory_of_the_readme_gives_a_fork_each_time_it_is_run(template_name) -> None:
    shown = (Path(__file__).parents[2] / "README.md").read_text()
    (program,) = (block for block in re.findall(r"```python\n(.*?)```", shown, re.DOTALL) if "Factory(" in block)
    try:
        for _ in range(2):
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                await asyncio.to_thread(exec, program, {})
            assert said.getvalue() == "factory\n"
    finally:
        await (await Template.open("factory")).remove()


def make_image(name: str, digest: str) -> None:
    """`name` leads to a copy of `default` that passes for another image; what it led to before is gone."""
    places = find_places()
    image, folder = ImageStore(places.images).open("default"), places.images / digest
    shutil.copytree(image.kernel.parent, folder)
    (folder / RECORD_NAME).write_bytes(encode_record(replace(image, digest=digest)))
    ImageStore(places.images).link(name, digest)


async def test_an_image_that_was_rebuilt_under_a_factory_is_booted(instance) -> None:
    config = VMConfig(image="moving")
    await prepare(VMConfig(), Instance(find_places()))  # `default` is there
    make_image("moving", "a" * 64)
    try:
        async with Factory(FactoryConfig(vm=config)) as factory, Factory(FactoryConfig(vm=config, cache=1)) as cached:
            async with await factory.get_vm() as vm:
                assert (await vm.exec(["true"])).ok
            async with asyncio.timeout(LIMIT_S):
                while not cached.stats().cache.ready:
                    await asyncio.sleep(0.05)
            make_image("moving", "b" * 64)
            # The pool holds one that was booted before, and makes the next of what is there now.
            for each in (factory, cached, cached):
                async with await each.get_vm(timeout_s=LIMIT_S) as vm:
                    assert (await vm.exec(["true"])).ok
            assert (cached.stats().given, cached.stats().fallbacks) == ({"cache of direct": 2}, {})
    finally:
        ImageStore(find_places().images).remove("moving")
