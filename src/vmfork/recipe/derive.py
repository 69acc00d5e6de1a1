"""The image of a recipe with packages: the base image's, and theirs. Built once, found by what it is made of."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vmfork.config import ImageConfig
from vmfork.errors import ConfigError, ImageNotFound, StoreBusy
from vmfork.image import ImageStore
from vmfork.image.build import build_image
from vmfork.image.derived import name_derived, name_packages
from vmfork.machine.prepare import ensure_image
from vmfork.recipe.step import Packages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.config import Instance, VMConfig
    from vmfork.recipe.step import Step


async def derive_config(config: VMConfig, steps: Sequence[Step], *, instance: Instance) -> VMConfig:
    """The configuration with the image that has the packages of the steps, which is there now.

    Without packages it is `config` itself. What was derived from a former image of the same name is gone. Raises what
    `ensure_image` and `build_image` raise, and `ConfigError` where the image is a container image.
    """
    wanted = list_packages(steps)
    if not wanted:
        return config
    base = await ensure_image(config.image, instance=instance)
    if base.source:
        reason = f"the image {base.name!r} is a container image (of {base.source}), and has none of Debian's packages"
        hint = 'install them where it is built, or by a step such as {run = "apk add git", network = "all"}'
        raise ConfigError("packages", [*wanted], reason, hint=hint)
    made_of = ImageConfig(suite=base.suite, packages=(*base.requested, *wanted), bare=base.bare, root=base.root)
    name, store = name_derived(base, wanted), ImageStore(instance.places.images)
    # One of the same packages that is older than the base may have them as they were before.
    await build_image(name, made_of, store=store, progress=instance.progress, not_before=base.created_at)
    for other in store.list_names():
        if other.startswith(name_packages(base, wanted)) and other != name:
            with suppress(ImageNotFound, StoreBusy):
                store.remove(other)
    return replace(config, image=name)


def list_packages(steps: Sequence[Step]) -> tuple[str, ...]:
    """The packages of the steps, sorted, each once."""
    return tuple(sorted({name for step in steps if isinstance(step, Packages) for name in step.names}))
