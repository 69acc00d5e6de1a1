"""Packages in one image do their first real act in a fork, and each fork has SSH host keys of its own.

`make test-packages` has twenty, each in an image of its own.
"""

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
SSH = ("openssh-server", "openssh-client", "bash", "grep", "procps")
SERVER = [
    "ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key",
    "cp /etc/ssh/ssh_host_ed25519_key.pub /root/frozen.pub",
    "mkdir -p /run/sshd; /usr/sbin/sshd",
    "mkdir -p /var/lib/systemd; head -c 512 /dev/urandom > /var/lib/systemd/random-seed",
]


@pytest.fixture(scope="module")
def acting(instance):
    """All are installed, and its SSH server runs, with a host key."""
    packages = (*SMALL, *SSH)
    template = asyncio.run(open_template("acting", packages, instance, warm_up=SERVER, ready="test -s /run/sshd.pid"))
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


async def test_each_fork_has_host_keys_of_its_own(acting) -> None:
    vms = await acting.fork_many(2)
    try:
        keys = [(await vm.read_file("/etc/ssh/ssh_host_ed25519_key.pub")).split()[1] for vm in vms]
        frozen = (await vms[0].read_file("/root/frozen.pub")).split()[1]
        assert len({*keys, frozen}) == 3
        for vm, key in zip(vms, keys, strict=True):
            # The server closed its socket and starts anew: a scan may come too early.
            scan = "until ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null | grep .; do :; done"
            shown = (await vm.shell(scan, check=True, timeout_s=60)).stdout
            assert key.decode() in shown
            mode = (await vm.stat("/etc/ssh/ssh_host_ed25519_key")).mode & 0o777
            assert mode == 0o600
            assert not (await vm.exec(["test", "-e", "/var/lib/systemd/random-seed"])).ok
    finally:
        for vm in vms:
            await vm.aclose()


async def test_the_audit_sees_them(acting) -> None:
    report = await acting.audit(2)
    assert {row.name: row.verdict for row in report.rows}["ssh-host-keys"] == "ok"
    assert report.safe
