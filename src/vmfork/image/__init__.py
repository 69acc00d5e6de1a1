"""What a guest boots: kernel and initramfs, built once with mmdebstrap, content-addressed. Knows nothing of VMs."""

from vmfork.image.least import write_least
from vmfork.image.record import Image
from vmfork.image.store import list_images, lock_path, open_image, remove_image, sweep_images, verify_image

__all__ = [
    "Image",
    "list_images",
    "lock_path",
    "open_image",
    "remove_image",
    "sweep_images",
    "verify_image",
    "write_least",
]
