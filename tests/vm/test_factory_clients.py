"""Clients of a factory that others set up: they share its configuration, and need nothing that it is made of."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

from tests.vm.cli_runner import COMMAND, Running, environment, left_of, vmfork
from vmfork.aio import Factory
from vmfork.config import FactoryConfig, Instance, VMConfig
from vmfork.errors import FallbackRefused
from vmfork.machine.prepare import prepare
from vmfork.template.kept import KeptRecipe, keeping_recipe

pytestmark = pytest.mark.vm

LIMIT_S = 120
# What a client is handed says that it came from the server, in the size that the server's file asks for.
CLIENT = """
import json, vmfork
with vmfork.Factory() as factory, factory.get_vm(timeout_s=60) as vm:
    assert vm.exec(["true"], timeout_s=60).ok
    stats = factory.stats()
    print(json.dumps([vm.hardware.memory_mib, dict(stats.given), dict(stats.fallbacks)]))
"""


@pytest.fixture(scope="module", autouse=True)
def image(instance):
    """What machines boot is there, and all that only booting it tells: a server is not waited for so long."""
    asyncio.run(prepare(VMConfig(), Instance(instance)))


@pytest.fixture
def shared(instance, tmp_path):
    """A folder with the `vmfork.toml` that a server and its clients share; in the end nothing is left of them."""
    (tmp_path / "vmfork.toml").write_text(
        f'[vm]\nmemory_mib = 288\n[factory]\ntemplate = true\ntemplate_name = "shared"\ncache = 1\n'
        f'endpoint = "{tmp_path}/cache.sock"\n'
    )
    yield tmp_path
    for name in ("shared", "default-1c-288m"):
        vmfork("template", "rm", name)
    assert left_of(instance.runtime) == []


def run_client(cwd, **env) -> list[object]:
    done = subprocess.run(
        [sys.executable, "-c", CLIENT], cwd=cwd, env=environment(env), capture_output=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def run(cwd, *options: str, **env) -> dict[str, object]:
    """What `vmfork run --json` tells of a command that prints the size of its machine."""
    return json.loads(vmfork("run", "--json", *options, "nproc", cwd=cwd, env=env).check().out)


def test_who_shares_the_file_of_a_server_is_its_client(shared, tmp_path) -> None:
    """With `memory_mib` in the server's file the documented client booted each machine, and needed an image."""
    empty = tmp_path / "nothing"
    empty.mkdir()
    # Neither image nor emulator.
    bare = {"VMFORK_HOME": str(empty), "PATH": str(empty), "VMFORK_VM_QEMU": str(empty / "qemu")}
    with Running(command=(*COMMAND, "factory", "init", "--json"), cwd=shared) as server:
        server.wait_for('"serving"', fd=1)
        given = [288, {"remote cache of template 'shared'": 1}, {}]
        # The same file; and one that names the server and says nothing of machines.
        assert run_client(shared, **bare) == given
        (empty / "vmfork.toml").write_text(f'[factory]\nremote = true\nendpoint = "{shared}/cache.sock"\n')
        assert run_client(empty, **bare) == given
        # So is `vmfork run`, unless it is told not to.
        taken = run(shared, **bare)
        assert (taken["source"]["kind"], taken["source"]["made_from"]) == ("server", "template 'shared'")
        timed = vmfork("run", "--timings", "true", cwd=shared, env=bare).check().err
        assert "from    kept ready by the VM cache server, a fork of template 'shared'\n" in timed
        own = run(shared, "--no-factory")
        assert (own["source"]["kind"], own["source"]["made_from"]) == ("template", "template 'default-1c-288m'")
        vmfork("factory", "destroy", cwd=shared).check()
        server.end().check()
    assert list(empty.iterdir()) == [empty / "vmfork.toml"]
    # Where no server keeps the pool, a run forks the template itself; it is built where it may be.
    forked = run(shared)
    assert (forked["source"]["kind"], forked["source"]["made_from"]) == ("template", "template 'shared'")
    background = {"VMFORK_FACTORY_BUILD": "background", "VMFORK_FACTORY_TEMPLATE_NAME": "absent"}
    refused = vmfork("run", "true", cwd=shared, env=background)
    assert (refused.status, "no template is named 'absent'" in refused.err) == (125, True)
    grown = vmfork("run", "--memory", "300", "true", cwd=shared)
    assert grown.status == 0


@pytest.fixture
def warmed(instance):
    """Two templates of one image and size, of which a reboot left the recipes."""
    names = ("first", "second")
    for name in names:
        with keeping_recipe(
            name, KeptRecipe(config=VMConfig(), warm_up=(f"echo {name} > /root/mark",)), places=instance
        ):
            pass
    yield names
    for name in names:
        vmfork("template", "rm", name)
    assert left_of(instance.runtime) == []


async def mark_of(vm) -> str:
    async with vm:
        return (await vm.read_file("/root/mark")).decode().strip()


async def test_a_server_gives_each_of_its_templates_and_nothing_stands_in_for_them(warmed, tmp_path) -> None:
    """A booted machine, or one of the other template, was given in their place without a word."""
    config = FactoryConfig(remote=True, endpoint=str(tmp_path / "cache.sock"), missing="boot")
    serving = {
        "VMFORK_FACTORY_TEMPLATES": " ".join(warmed),
        "VMFORK_FACTORY_CACHE": "1",
        "VMFORK_FACTORY_ENDPOINT": config.endpoint,
    }
    async with Factory(config) as client:
        async with await client.get_vm() as vm:  # nothing is known of what it stands for
            assert (vm.source.kind, vm.source.reason) == ("booted", "host")
        with Running(command=(*COMMAND, "factory", "init", "--json"), env=serving) as server:
            server.wait_for('"serving"', fd=1)
            for name in (*warmed, *reversed(warmed)):
                vm = await client.get_vm(template=name, timeout_s=LIMIT_S)
                assert (vm.source.kind, vm.source.made_from) == ("server", f"template {name!r}")
                assert await mark_of(vm) == name
            assert await mark_of(await client.get_vm(timeout_s=LIMIT_S)) == "first"
            with pytest.raises(FallbackRefused, match="has kernel_args '', 'quiet' was asked for"):
                await client.get_vm(VMConfig(kernel_args="quiet"))
            told = json.loads(vmfork("factory", "status", "--json", env=serving).check().out)
            assert [(pool["template"], pool["pool"]["size"]) for pool in told["pools"]] == [
                (name, 1) for name in warmed
            ]
            assert "  second: " in vmfork("factory", "status", env=serving).check().out
            vmfork("factory", "destroy", env=serving).check()
            server.end().check()
        with pytest.raises(FallbackRefused, match="no VM cache server"):
            await client.get_vm(template="second")
        assert client.stats().refused == {"kernel_args": 1, "host": 1}
