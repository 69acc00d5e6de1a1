"""Machines of the template that all tests share; `any_vm` runs on a booted and on a forked one."""

from __future__ import annotations

import pytest
import pytest_asyncio

from vmfork.aio import VM, Template


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


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["booted", "forked"])
async def shared_vm(request, template_name):
    """As `any_vm`, but one machine for all tests of a file that leave it as it was.

    They are marked `asyncio(loop_scope="module")`. Who has another machine is not: that is one of the test's own loop.
    """
    async with await (VM.boot() if request.param == "booted" else (await Template.open(template_name)).fork()) as vm:
        yield vm
