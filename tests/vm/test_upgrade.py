"""The emulator is upgraded under factories that live on: what they hold is given, and what is stale is built again."""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager

import pytest

from tests.vm.cli_runner import COMMAND, Running, left_of, vmfork
from tests.vm.emulator import Emulator
from vmfork.aio import Factory, Template
from vmfork.config import FactoryConfig, VMConfig
from vmfork.errors import VMForkError
from vmfork.hypervisor.qemu import find_qemu
from vmfork.rpc.status import Phase

pytestmark = pytest.mark.vm

LIMIT_S = 60.0


@pytest.fixture
async def emulator(instance, tmp_path) -> Emulator:
    real = await find_qemu()
    yield Emulator(tmp_path / "qemu", real.path, ".".join(map(str, real.release)))
    if "upgraded" in await Template.list():
        vmfork("template", "rm", "upgraded").check()
    assert left_of(instance.runtime) == []


def config_for(emulator: Emulator, **more) -> FactoryConfig:
    vm = VMConfig(qemu=str(emulator.path))
    return FactoryConfig(vm=vm, template=True, template_name="upgraded", build="background", **more)


async def version_of(emulator: Emulator) -> str:
    template = await Template.open("upgraded", config=VMConfig(qemu=str(emulator.path)))
    return template.manifest.traits["qemu.version"]


async def until(is_so) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not is_so():
            await asyncio.sleep(0.05)


async def test_a_background_factory_builds_again_and_boots_meanwhile(emulator) -> None:
    """It never did: requests ended in `template-stale`, and after three of them in `quarantined`."""
    async with Factory(config_for(emulator)) as factory:
        await until(lambda: not factory.stats().building)
        async with await factory.get_vm() as vm:
            assert vm.template == "upgraded"
        emulator.install("two")
        async with await factory.get_vm() as vm:
            assert (vm.template, factory.stats().fallbacks) == ("", {"template-stale": 1})
        await until(lambda: not factory.stats().building)
        async with await factory.get_vm() as vm:
            assert vm.template == "upgraded"
        assert (await version_of(emulator)).endswith("(two)")
        assert factory.stats().quarantined == {}


async def test_a_pool_gives_what_it_holds_and_then_what_is_built_again(emulator) -> None:
    async with Factory(config_for(emulator, cache=1)) as factory:
        await until(lambda: factory.stats().cache is not None and factory.stats().cache.ready)
        (held,) = factory.stats().cache.vms
        emulator.install("two")
        async with await factory.get_vm(timeout_s=LIMIT_S) as vm:
            assert vm.id == held.id
        for _ in range(2):
            async with await factory.get_vm(timeout_s=LIMIT_S) as vm:
                assert (vm.template, vm.id != held.id) == ("upgraded", True)
                assert (await vm.exec(["true"])).ok
        assert (await version_of(emulator)).endswith("(two)")
        assert (factory.stats().fallbacks, factory.stats().cache.failed) == ({}, 0)


@contextmanager
def serving(settings):
    with Running(command=(*COMMAND, "factory", "init", "--json"), env=settings) as server:
        server.wait_for('"serving"', fd=1)
        yield server
        assert vmfork("factory", "destroy", env={**settings, "VMFORK_FACTORY_TEMPLATE_NAME": "none"}).status == 0
        server.end().check()


async def test_a_server_builds_again_is_degraded_while_it_cannot_start_and_serves_again(emulator, tmp_path) -> None:
    """It went on saying that it was on, and every client waited its whole time limit at every request."""
    endpoint = tmp_path / "run" / "cache.sock"
    settings = {
        "VMFORK_VM_QEMU": str(emulator.path),
        "VMFORK_FACTORY_TEMPLATE": "true",
        "VMFORK_FACTORY_TEMPLATE_NAME": "upgraded",
        "VMFORK_FACTORY_CACHE": "1",
        "VMFORK_FACTORY_ENDPOINT": str(endpoint),
    }

    def status() -> tuple[int, dict]:
        told = vmfork("factory", "status", "--json", env=settings)
        return told.status, json.loads(told.out)

    client = FactoryConfig(vm=VMConfig(qemu=str(emulator.path)), remote=True, endpoint=str(endpoint))
    with serving(settings):
        async with Factory(client) as factory:
            emulator.install("two")
            for _ in range(3):
                async with await factory.get_vm(timeout_s=LIMIT_S) as vm:
                    assert vm.template == "upgraded"
            assert factory.stats().fallbacks == {}
            assert (await version_of(emulator)).endswith("(two)")
            await until(lambda: status()[1]["pool"]["ready"] == 1)

            emulator.break_it()
            async with await factory.get_vm(timeout_s=LIMIT_S) as vm:
                assert vm.template == "upgraded"
            await until(lambda: status()[1]["state"] == Phase.DEGRADED)
            code, told = status()
            assert (code, told["on"]) == (3, False)
            assert told["pool"]["last_error"]
            begun = asyncio.get_running_loop().time()
            with pytest.raises(VMForkError):
                await factory.get_vm(timeout_s=LIMIT_S)
            assert asyncio.get_running_loop().time() - begun < LIMIT_S / 2
            assert set(factory.stats().fallbacks) == {"host"}

            emulator.install("two")
            await until(lambda: status()[0] == 0)
            async with await factory.get_vm(timeout_s=LIMIT_S) as vm:
                assert vm.template == "upgraded"
