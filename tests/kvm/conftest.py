"""One template, made under KVM, for all tests here; without a KVM that works they are skipped, by name."""

from __future__ import annotations

import asyncio

import pytest

from tests.rules.capabilities import need
from vmfork.aio import Template
from vmfork.config import ImageConfig, Instance, VMConfig
from vmfork.image import ImageStore
from vmfork.image.build import build_image
from vmfork.machine.prepare import try_out

# One CPU and 256 MiB more may be asked for.
ROOMY = VMConfig(max_cpus=2, max_memory_mib=512)


async def choose_accelerator(places) -> str:
    image = await build_image("default", ImageConfig(), store=ImageStore(places.images))
    return (await try_out(image, VMConfig(), Instance(places))).hardware.accel


@pytest.fixture(scope="session")
def working_kvm(instance) -> None:
    """What a host chose by itself, from a boot: the test is about KVM only where that is KVM."""
    # Guaranteed by tools/hosts/kvm in a test host, whose KVM works.
    need("working-kvm", found=asyncio.run(choose_accelerator(instance)) == "kvm")


@pytest.fixture(scope="session")
def roomy(working_kvm):
    """The template's name."""
    template = asyncio.run(Template.build("road", ROOMY))
    yield template.name
    asyncio.run(template.remove())
