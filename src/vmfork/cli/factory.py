"""`vmfork factory`: init, status, destroy, for the template that a factory forks from."""

from __future__ import annotations

import asyncio
import sys

import click

from vmfork.cli.report import print_json, show_progress
from vmfork.config import FactoryConfig, find_places
from vmfork.errors import TemplateError, TemplateNotFound

OFF = 3


@click.group("factory")
def command() -> None:
    """The template that a factory forks its machines from."""


@command.command("init")
def init() -> None:
    """Build the factory's template. An error when there is one."""
    from vmfork.factory import Factory  # noqa: PLC0415

    asyncio.run(Factory(FactoryConfig(template=True), progress=show_progress).open())
    print("factory is ready")


@command.command("status")
@click.option("--json", "as_json", is_flag=True)
def status(as_json: bool) -> int:
    """Tell whether the factory's template is there and fits. Exit status 0 on, 3 off, 1 there but unusable."""
    from vmfork.template import Template  # noqa: PLC0415
    from vmfork.vm.folder import list_records  # noqa: PLC0415

    name = FactoryConfig().template_name
    answer: dict[str, object] = {"template": name, "state": "on", "reason": ""}
    code = 0
    try:
        manifest = asyncio.run(Template.open(name)).manifest
        answer |= {"created_at": manifest.created_at, "cpus": manifest.cpus, "memory_mib": manifest.memory_mib}
    except TemplateNotFound as error:
        answer |= {"state": "off", "reason": str(error)}
        code = OFF
    except TemplateError as error:
        answer |= {"state": "unusable", "reason": str(error)}
        code = 1
    answer["forks"] = [record.id for record in list_records(find_places().vms) if record.template == name]
    if as_json:
        print_json(answer)
    else:
        print(f"factory is {answer['state']}" + (f": {answer['reason']}" if answer["reason"] else ""))
    return code


@command.command("destroy")
def destroy() -> None:
    """Remove the factory's template; says so when there was none."""
    from vmfork.store import TemplateStore  # noqa: PLC0415

    try:
        asyncio.run(TemplateStore(find_places().templates).remove(FactoryConfig().template_name))
    except TemplateNotFound:
        print("there was no factory to destroy", file=sys.stderr)
        return
    print("factory destroyed")
