"""A factory made ready before it is asked: what `vmfork factory init` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.config import Instance
from vmfork.errors import TemplateError, TemplateExists
from vmfork.factory.template import TemplateFactory, find_own_recipe, find_past
from vmfork.store import TemplateStore
from vmfork.template.build import build_template
from vmfork.template.travelling.persisted import open_template

if TYPE_CHECKING:
    from vmfork.config import FactoryConfig, Places
    from vmfork.progress import ProgressListener


async def check_templates(config: FactoryConfig, *, new: bool = False, places: Places) -> None:
    """Each name can be used here, or made again as it was made before. Nothing was built.

    Raises what opening raises for one of `templates` that cannot, `ConfigError` for an invalid recipe, and with `new`
    `TemplateExists` when the factory's own template is there.
    """
    instance = Instance(places)
    find_own_recipe(config)
    if new and config.template_name in TemplateStore(places.templates).list_names():
        raise _exists(TemplateExists(config.template_name))
    for name in config.template_names:
        if config.template and name == config.template_name:
            continue
        try:
            await open_template(name, config=config.vm, instance=instance)
        except TemplateError:
            if (past := find_past(name, instance=instance)) is None or past.config is None:
                raise


async def make_templates(config: FactoryConfig, *, new: bool, places: Places, progress: ProgressListener) -> None:
    """Every template of the factory is whole and fits this host, whatever `build` says; its own was made last.

    With `new` its own was built; raises `TemplateExists` when there is one. Else it was built only when it was missing
    or did not fit.
    """
    instance = Instance(places, progress, config.budget)
    for name in config.template_names:
        if not config.template or name != config.template_name:
            await TemplateFactory.restore(name, config.vm, instance=instance)
    if not config.template:
        return
    recipe = find_own_recipe(config)
    if not new:
        await TemplateFactory.ensure(config.template_name, config.vm, instance=instance, recipe=recipe)
        return
    try:
        await build_template(config.template_name, config.vm, recipe, instance=instance)
    except TemplateExists as error:
        raise _exists(error) from None


def _exists(error: TemplateExists) -> TemplateExists:
    error.hint = (
        "it is in use as it is (vmfork factory status, vmfork factory init --ensure); "
        "to build anew: vmfork factory destroy"
    )
    return error
