"""`vmfork template`: build, ls, show, verify, rm."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from vmfork.cli.report import print_json, print_rows, show_progress
from vmfork.config import VMConfig, find_places
from vmfork.errors import TemplateError
from vmfork.units import format_bytes, format_mib, parse_size_mib

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.group("template")
def command() -> None:
    """Frozen machines that forks are made from."""


@command.command("build")
@click.argument("name")
@click.option("--image", default="default", show_default=True)
@click.option("--cpus", type=int, default=1, show_default=True)
@click.option("--memory", default="256M", show_default=True, help="As 256M, 1G or MiB.")
@click.option("--run", "runs", multiple=True, metavar="CMD", help="Shell command to warm up with; may be repeated.")
@click.option("--ready", default="", metavar="CMD", help="Shell command that is tried until it succeeds.")
@click.option("--replace", is_flag=True, help="Replace a template of that name once the new one is whole.")
def build(name: str, image: str, cpus: int, memory: str, runs: Sequence[str], ready: str, replace: bool) -> None:
    """Boot a machine, warm it up, freeze it as NAME."""
    from vmfork.template import Template  # noqa: PLC0415

    config = VMConfig(image=image, cpus=cpus, memory_mib=parse_size_mib(memory, field="--memory"))
    asyncio.run(Template.build(name, config, warm_up=tuple(runs), ready=ready, replace=replace, progress=show_progress))


@command.command("ls")
@click.option("--json", "as_json", is_flag=True)
def ls(as_json: bool) -> None:
    """List templates."""
    from vmfork.store import TemplateStore  # noqa: PLC0415

    store = TemplateStore(find_places().templates)
    found: list[dict[str, object]] = []
    for name in store.list_names():
        try:
            m = store.read_manifest(name)
        except TemplateError as error:
            found.append({"name": name, "error": str(error)})
            continue
        found.append(
            {
                "name": name,
                "image": m.image,
                "cpus": m.cpus,
                "memory_mib": m.memory_mib,
                "accel": m.traits["accel"],
                "allocated_bytes": m.memory_allocated_bytes,
                "created_at": m.created_at,
            }
        )
    if as_json:
        print_json(found)
        return
    rows = [
        (t["name"], t["error"], "", "", "", "")
        if "error" in t
        else (
            t["name"],
            t["image"],
            t["cpus"],
            format_mib(float(str(t["memory_mib"]))),
            format_bytes(float(str(t["allocated_bytes"]))),
            t["created_at"],
        )
        for t in found
    ]
    print_rows(("NAME", "IMAGE", "CPUS", "MEMORY", "IN USE", "CREATED"), rows)


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True)
def show(name: str, as_json: bool) -> None:
    """Show what NAME was frozen from, and whether it fits this host."""
    from vmfork.template import Template  # noqa: PLC0415

    template = asyncio.run(Template.open(name))
    record = asdict(template.manifest) | {"fingerprint": template.manifest.fingerprint}
    if as_json:
        print_json(record)
        return
    print_rows(("FIELD", "VALUE"), [(key, value) for key, value in record.items()])


@command.command("verify")
@click.argument("name")
def verify(name: str) -> None:
    """Compare every byte of NAME with what was frozen."""
    from vmfork.template import Template  # noqa: PLC0415

    async def check() -> None:
        await (await Template.open(name)).verify()

    asyncio.run(check())
    print(f"template {name!r} is whole")


@command.command("rm")
@click.argument("name")
def rm(name: str) -> None:
    """Remove NAME; forks made from it run on."""
    from vmfork.store import TemplateStore  # noqa: PLC0415

    asyncio.run(TemplateStore(find_places().templates).remove(name))
