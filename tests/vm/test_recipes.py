"""What was warmed stays warmed: a template that is gone, as after a reboot, is made again as it was made."""

from __future__ import annotations

import asyncio

import pytest

from tests.vm.cli_runner import left_of, vmfork
from vmfork.aio import Factory, Template
from vmfork.config import FactoryConfig, VMConfig, find_places
from vmfork.errors import FallbackRefused, TemplateNotFound
from vmfork.store import TemplateStore
from vmfork.template.removal import remove_template

pytestmark = pytest.mark.vm

LIMIT_S = 120.0
MARK = "/root/warmed"


@pytest.fixture(autouse=True)
async def nothing_is_left(instance):
    yield
    for name in await Template.list():
        if name.startswith("warmed"):
            await remove_template(name, places=instance)
    assert left_of(instance.runtime) == []


async def reboot(name: str) -> None:
    """What a reboot leaves of a template: nothing below RUNTIME, and HOME."""
    await TemplateStore(find_places().templates).remove(name)


async def mark_of(template: Template) -> str:
    async with await template.fork() as vm:
        return (await vm.shell(f"cat {MARK} 2>/dev/null")).stdout.strip()


async def test_a_warmed_template_that_is_gone_is_made_again_as_it_was(instance) -> None:
    """It came back as a bare one, without a word."""
    config = VMConfig(memory_mib=320)
    await Template.build("warmed", config, warm_up=[f"echo yes > {MARK}"], ready=f"test -e {MARK}")
    await reboot("warmed")
    again = await Template.ensure("warmed")
    assert (await mark_of(again), again.manifest.memory_mib) == ("yes", 320)
    assert again.manifest.warm_up == (f"echo yes > {MARK}",)
    await reboot("warmed")
    async with Factory(FactoryConfig(vm=config, template=True, template_name="warmed", build="background")) as factory:
        with pytest.raises(FallbackRefused, match="template 'warmed' is being built"):
            await factory.get_vm()  # a machine that was booted would not be warmed
        async with asyncio.timeout(LIMIT_S):
            while factory.stats().building:
                await asyncio.sleep(0.05)
        async with await factory.get_vm() as vm:
            assert (await vm.read_file(MARK)).decode() == "yes\n"


async def test_what_needs_values_that_were_not_kept_is_refused_by_name(instance) -> None:
    await Template.build("warmed-with", warm_up=[f"echo $TOKEN > {MARK}"], env={"TOKEN": "s3cret"})
    await reboot("warmed-with")
    with pytest.raises(TemplateNotFound) as caught:
        await Template.ensure("warmed-with")
    assert "TOKEN, whose values are not kept" in caught.value.hint
    assert "warmed-with" not in await Template.list()


async def test_run_makes_a_default_that_was_made_by_hand_again_as_it_was(instance) -> None:
    assert "default" not in await Template.list()
    vmfork("template", "build", "default", "--run", f"echo yes > {MARK}").check()
    try:
        await reboot("default")
        assert vmfork("run", "cat", MARK).check().out == "yes\n"
    finally:
        vmfork("template", "rm", "default").check()
    # Removed by name, it is forgotten.
    assert not (instance.recipes / "default.json").exists()
