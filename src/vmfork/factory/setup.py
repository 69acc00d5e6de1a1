"""A factory made ready before it is asked: what `vmfork factory init` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.api.template import Template
from vmfork.errors import TemplateExists

if TYPE_CHECKING:
    from vmfork.config import FactoryConfig, Places
    from vmfork.progress import ProgressListener


async def check_templates(config: FactoryConfig, *, places: Places) -> None:
    """Raises what opening raises when one of the `templates` that are only fetched cannot be used here."""
    for name in config.templates:
        await Template.open(name, config=config.vm, places=places)


async def build_template(config: FactoryConfig, *, new: bool, places: Places, progress: ProgressListener) -> Template:
    """The factory's template, whole and fit for this host, whatever `build` says.

    With `new` it was built: raises `TemplateExists` when there is one. Else it was built only where it is missing or
    does not fit.
    """
    name, vm = config.template_name, config.vm
    if not new:
        return await Template.ensure(name, vm, places=places, progress=progress)
    try:
        return await Template.build(name, vm, places=places, progress=progress)
    except TemplateExists as error:
        error.hint = (
            "it is in use as it is (vmfork factory status, vmfork factory init --ensure); "
            "to build anew: vmfork factory destroy"
        )
        raise
