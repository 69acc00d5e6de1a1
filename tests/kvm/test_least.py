"""Under KVM too, an image with packages boots in exactly the memory that was measured for it."""

from __future__ import annotations

import pytest

from tests.rules.capabilities import need
from tests.vm.least import boots_in_its_least
from vmfork.image import ImageStore

pytestmark = [pytest.mark.vm, pytest.mark.kvm, pytest.mark.slow, pytest.mark.limit_s(1200)]


async def test_an_image_with_packages_boots_in_exactly_its_least_memory(working_kvm, instance) -> None:
    need("packed-image", found="packed" in {image.name for image in ImageStore(instance.images).list_images()})
    await boots_in_its_least("packed", instance)
