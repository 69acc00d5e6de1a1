"""Under KVM too, an image with packages boots in exactly the memory that was measured for it."""

from __future__ import annotations

import pytest

from tests.vm.least import boots_in_its_least
from vmfork.image import ImageStore

pytestmark = [pytest.mark.vm, pytest.mark.kvm, pytest.mark.slow, pytest.mark.limit_s(1200)]


async def test_an_image_with_packages_boots_in_exactly_its_least_memory(working_kvm, instance) -> None:
    if "packed" not in {image.name for image in ImageStore(instance.images).list_images()}:
        pytest.skip("no image with packages was brought: `make test-kvm` brings one; elsewhere tests/vm build theirs")
    await boots_in_its_least("packed", instance)
