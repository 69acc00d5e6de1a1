"""What a guest boots: kernel and initramfs, built once with mmdebstrap, named by content. Knows nothing of VMs."""

from vmfork.image.disks import DiskStore
from vmfork.image.least import write_least
from vmfork.image.record import Image
from vmfork.image.store import ImageStore

__all__ = ["DiskStore", "Image", "ImageStore", "write_least"]
