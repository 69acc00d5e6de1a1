"""The image of a recipe with packages: the base image's, and theirs. Built once, found by what it is made of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from vmfork.config import ImageConfig
from vmfork.image import ImageStore
from vmfork.image.build import build_image
from vmfork.machine.prepare import ensure_image
from vmfork.recipe.step import Packages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.config import Instance, VMConfig
    from vmfork.recipe.step import Step

_NAME_SIZE = 12
# Room for the name of the base image in that of the derived one (`check_name`).
_MOST_OF_BASE = 40


async def derive_config(config: VMConfig, steps: Sequence[Step], *, instance: Instance) -> VMConfig:
    """The configuration with the image that has the packages of the steps, which is there now.

    Without packages it is `config` itself. Raises what `ensure_image` and `build_image` raise.
    """
    wanted = list_packages(steps)
    if not wanted:
        return config
    base = await ensure_image(config.image, instance=instance)
    made_of = ImageConfig(suite=base.suite, packages=(*base.requested, *wanted), bare=base.bare, root=base.root)
    name = name_derived(config.image, made_of)
    await build_image(name, made_of, store=ImageStore(instance.places.images), progress=instance.progress)
    return replace(config, image=name)


def list_packages(steps: Sequence[Step]) -> tuple[str, ...]:
    """The packages of the steps, sorted, each once."""
    return tuple(sorted({name for step in steps if isinstance(step, Packages) for name in step.names}))


def name_derived(base: str, made_of: ImageConfig) -> str:
    """What the derived image is called: the same for the same packages over images made of the same."""
    inputs = [made_of.suite, sorted(set(made_of.packages)), made_of.bare]
    if made_of.root != "auto":
        inputs.append(made_of.root)
    digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:_NAME_SIZE]
    return f"{base[:_MOST_OF_BASE]}.with-{digest}"
