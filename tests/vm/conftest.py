"""One template for all tests with machines; `any_vm` runs on a booted and on a forked one."""

from __future__ import annotations

import asyncio

import pytest

from vmfork.aio import VM, Template
from vmfork.config import VMConfig

NAME = "test"


@pytest.fixture(scope="session")
def template_name(instance):
    template = asyncio.run(
        Template.build(NAME, VMConfig(), warm_up=["echo warm > /root/marker", "cat /proc/uptime > /root/uptime"])
    )
    yield NAME
    asyncio.run(template.remove())


@pytest.fixture
async def template(template_name) -> Template:
    return await Template.open(template_name)


@pytest.fixture
async def fork(template):
    async with await template.fork() as vm:
        yield vm


@pytest.fixture(params=["booted", "forked"])
async def any_vm(request, template):
    vm = await (VM.boot() if request.param == "booted" else template.fork())
    async with vm:
        yield vm
