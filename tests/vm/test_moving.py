"""A template on another instance, which has neither its image nor anything else of the one that it was built on."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.registry import running_registry
from tests.vm.cli_runner import vmfork
from vmfork.aio import Places, Template, VMConfig
from vmfork.host.tmpfs import unmount
from vmfork.template.removal import list_persisted

pytestmark = pytest.mark.vm

WHO = "cat /run/vmfork/fork-id /etc/machine-id /proc/sys/kernel/random/boot_id; head -c 8 /dev/urandom | od -An -tx8"


@pytest.fixture
def other(instance, tmp_path) -> Places:
    """Folders of its own, its RUNTIME in memory as the instance's is."""
    return Places(home=tmp_path / "home", runtime=instance.runtime / "other")


@pytest.fixture
async def loaded(template, other, tmp_path) -> Template:
    await template.save(tmp_path / "test.tar")
    loaded = await Template.load(tmp_path / "test.tar", places=other)
    yield loaded
    await loaded.remove()


async def test_forks_of_one_that_was_loaded_are_unique_and_have_what_was_frozen(loaded, other) -> None:
    assert not other.images.exists()
    async with await loaded.fork() as one, await loaded.fork() as two:
        for vm in (one, two):
            assert (await vm.exec(["cat", "/root/marker"])).stdout == "warm\n"
        first, second = [(await vm.shell(WHO)).stdout.splitlines() for vm in (one, two)]
        assert len(first) == 4
        assert not {*first} & {*second}
        # Its own are made from it there as anywhere.
        frozen = await one.freeze("again")
        async with await frozen.fork() as again:
            assert (await again.exec(["cat", "/root/marker"])).stdout == "warm\n"
        await frozen.remove()
    assert (await loaded.audit(2)).safe


@pytest.mark.needs("docker-registry", "oras")
def test_it_goes_by_a_registry(template_name, other, tmp_path) -> None:
    env = {"VMFORK_HOME": str(other.home), "VMFORK_RUNTIME_DIR": str(other.runtime)}
    with running_registry(tmp_path / "registry") as registry:
        ref = f"{registry.host}/team/test:1"
        pushed = json.loads(vmfork("template", "push", template_name, ref, "--json").check().out)
        assert pushed["sent_bytes"] > pushed["size_bytes"] > 0
        pulled = json.loads(vmfork("template", "pull", ref, "pulled", "--json", env=env).check().out)
    assert (pulled["name"], pulled["came_from"]) == ("pulled", ref)
    assert vmfork("run", "-t", "pulled", "--", "cat", "/root/marker", env=env).check().out == "warm\n"
    vmfork("template", "rm", "pulled", env=env).check()


def test_it_goes_by_the_command_line(template_name, other, tmp_path) -> None:
    env = {"VMFORK_HOME": str(other.home), "VMFORK_RUNTIME_DIR": str(other.runtime)}
    file = tmp_path / "test.tar"
    saved = json.loads(vmfork("template", "save", template_name, str(file), "--json").check().out)
    assert 0 < saved["size_bytes"] < file.stat().st_size
    loaded = json.loads(vmfork("template", "load", str(file), "copy", "--json", env=env).check().out)
    assert (loaded["name"], loaded["came_from"]) == ("copy", str(file))
    assert vmfork("run", "-t", "copy", "--", "cat", "/root/marker", env=env).check().out == "warm\n"
    again = vmfork("template", "load", str(file), "copy", "--json", env=env)
    assert (again.status, json.loads(again.out)["error"]["code"]) == (1, "template-exists")
    vmfork("template", "rm", "copy", env=env).check()
    file.write_bytes(file.read_bytes()[:100_000])
    damaged = vmfork("template", "load", str(file), env=env)
    assert (damaged.status, "hint:" in damaged.err) == (1, True)
    nowhere = vmfork("template", "load", str(tmp_path / "none"), "--json", env=env)
    assert (nowhere.status, json.loads(nowhere.out)["error"]["code"]) == (2, "config")
    assert vmfork("template", "ls", "--json", env=env).check().out == "[]\n"


async def test_what_is_built_and_frozen_is_kept_on_disk_where_that_is_asked_for(instance) -> None:
    made = [await Template.build("kept-built", VMConfig(persist=True))]
    try:
        async with await made[0].fork() as vm:
            made.append(await vm.freeze("kept-frozen", persist=True))
        assert {"kept-built", "kept-frozen"} <= {*list_persisted(instance)}
    finally:
        for template in made:
            await template.remove()
    assert {"kept-built", "kept-frozen"}.isdisjoint(list_persisted(instance))


async def test_forks_of_one_that_came_back_after_a_reboot(loaded, other) -> None:
    await loaded.persist()
    # As a reboot does it, as far as one process can: RUNTIME is gone with all that was mounted there.
    for folder in other.templates.glob("*/*"):
        if os.path.ismount(folder):
            unmount(folder)
    shutil.rmtree(other.runtime)
    env = {"VMFORK_HOME": str(other.home), "VMFORK_RUNTIME_DIR": str(other.runtime)}
    listed = json.loads(vmfork("template", "ls", "--json", env=env).check().out)
    assert listed == [{"name": "test", "state": "on disk"}]
    assert vmfork("run", "-t", "test", "--", "cat", "/root/marker", env=env).check().out == "warm\n"
    async with await (await Template.open("test", places=other)).fork() as vm:
        assert (await vm.exec(["cat", "/root/marker"])).stdout == "warm\n"
