"""A factory made ready before it is asked: what `vmfork factory init` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.api.template import Template
from vmfork.config import Instance
from vmfork.errors import TemplateExists
from vmfork.template import build as building

if TYPE_CHECKING:
    from vmfork.config import FactoryConfig, Places
    from vmfork.progress import ProgressListener


# Another process that builds the template is waited for this long.
_BUILD_WAIT_S = 600.0


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
    instance = Instance(places, progress, config.budget)
    if not new:
        return Template(await building.ensure_template(name, vm, instance=instance, wait_s=_BUILD_WAIT_S))
    try:
        return Template(await building.build_template(name, vm, instance=instance))
    except TemplateExists as error:
        error.hint = (
            "it is in use as it is (vmfork factory status, vmfork factory init --ensure); "
            "to build anew: vmfork factory destroy"
        )
        raise
