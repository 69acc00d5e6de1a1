"""What a guest boots: kernel and initramfs, built once with mmdebstrap, content-addressed. Knows nothing of VMs."""

from vmfork.image.build import build_image
from vmfork.image.recipe import find_agent
from vmfork.image.record import Image
from vmfork.image.store import list_images, open_image, remove_image, sweep_images, verify_image

__all__ = [
    "Image",
    "build_image",
    "find_agent",
    "list_images",
    "open_image",
    "remove_image",
    "sweep_images",
    "verify_image",
]
