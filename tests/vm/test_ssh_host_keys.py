"""An image with an SSH server: each fork has host keys of its own, and the server that runs in it uses them."""

from __future__ import annotations

import asyncio

import pytest

from tests.vm.least import boots_in_its_least
from vmfork.aio import Template
from vmfork.config import ImageConfig, VMConfig
from vmfork.image import ImageStore
from vmfork.image.build import build_image
from vmfork.machine.least import ample_memory_mib

pytestmark = pytest.mark.vm

PACKAGES = ("openssh-server", "openssh-client", "bash", "grep", "procps")
SERVER = [
    "ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key",
    "cp /etc/ssh/ssh_host_ed25519_key.pub /root/frozen.pub",
    "mkdir -p /run/sshd; /usr/sbin/sshd",
    "mkdir -p /var/lib/systemd; head -c 512 /dev/urandom > /var/lib/systemd/random-seed",
]


@pytest.fixture(scope="module")
def ssh_template(instance):
    async def build() -> Template:
        image = await build_image("ssh", ImageConfig(packages=PACKAGES), store=ImageStore(instance.images))
        config = VMConfig(image="ssh", memory_mib=ample_memory_mib(image))
        return await Template.build("ssh", config, warm_up=SERVER, ready="test -s /run/sshd.pid")

    template = asyncio.run(build())
    yield template
    asyncio.run(template.remove())
    ImageStore(instance.images).remove("ssh")


async def test_each_fork_has_host_keys_of_its_own(ssh_template) -> None:
    vms = await ssh_template.fork_many(2)
    try:
        keys = [(await vm.read_file("/etc/ssh/ssh_host_ed25519_key.pub")).split()[1] for vm in vms]
        frozen = (await vms[0].read_file("/root/frozen.pub")).split()[1]
        assert len({*keys, frozen}) == 3
        for vm, key in zip(vms, keys, strict=True):
            # The server closed its socket and starts anew: a scan may come too early.
            scan = "for i in 1 2 3 4 5 6 7 8 9; do ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null | grep . && break; done"
            shown = (await vm.shell(scan, check=True, timeout_s=60)).stdout
            assert key.decode() in shown
            mode = (await vm.stat("/etc/ssh/ssh_host_ed25519_key")).mode & 0o777
            assert mode == 0o600
            assert not (await vm.exec(["test", "-e", "/var/lib/systemd/random-seed"])).ok
    finally:
        for vm in vms:
            await vm.aclose()


async def test_the_audit_sees_them(ssh_template) -> None:
    report = await ssh_template.audit(2)
    assert {row.name: row.verdict for row in report.rows}["ssh-host-keys"] == "ok"
    assert report.safe


async def test_the_image_boots_in_exactly_its_least_memory(ssh_template, instance) -> None:
    await boots_in_its_least("ssh", instance)
