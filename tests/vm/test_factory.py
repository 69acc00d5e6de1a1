"""The outer factory over its bases: what it gives runs, is adopted, and is what was asked for."""

from __future__ import annotations

import pytest

from vmfork.aio import Factory, Template
from vmfork.config import FactoryConfig, VMConfig
from vmfork.errors import TemplateExists, TemplateNotFound

pytestmark = pytest.mark.vm


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
            with pytest.raises(TemplateExists):
                await Factory(config).open()
            async with Factory(config, fetch_only=True) as fetched, await fetched.get_vm() as vm:
                assert vm.template == config.template_name
        finally:
            await (await Template.open(config.template_name)).remove()
