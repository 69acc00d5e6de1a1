"""What a guest boots: kernel and initramfs, built once with mmdebstrap, content-addressed. Knows nothing of VMs."""

from typing import TYPE_CHECKING, Any

from vmfork.image.least import write_least
from vmfork.image.record import Image
from vmfork.image.store import list_images, lock_path, open_image, remove_image, sweep_images, verify_image

if TYPE_CHECKING:
    from vmfork.image.build import build_image
    from vmfork.image.recipe import find_agent

__all__ = [
    "Image",
    "build_image",
    "find_agent",
    "list_images",
    "lock_path",
    "open_image",
    "remove_image",
    "sweep_images",
    "verify_image",
    "write_least",
]


def __getattr__(name: str) -> Any:
    """What builds is loaded by whoever builds: every fork opens an image, few make one (docs/decisions/0008)."""
    if name == "build_image":
        from vmfork.image.build import build_image  # noqa: PLC0415

        return build_image
    if name == "find_agent":
        from vmfork.image.recipe import find_agent  # noqa: PLC0415

        return find_agent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
