"""`vmfork template`: frozen machines."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmfork.api.template import Template
from vmfork.cli.audit import audit
from vmfork.cli.complete import image_names, template_names
from vmfork.cli.loop import run_async
from vmfork.cli.network import network_options, read_network
from vmfork.cli.options import (
    WARM_UP_HELP,
    VerbGroup,
    cpus_option,
    disk_option,
    get_settings,
    json_option,
    memory_option,
    parse_variables,
    plain_http_option,
    prepare_image,
    template_argument,
)
from vmfork.cli.serve import ask_status
from vmfork.cli.show import command_hint, describe_failure, show_json, show_table, shown_progress
from vmfork.cli.tree import Tree
from vmfork.config import find_places
from vmfork.errors import ConfigError, VMForkError
from vmfork.factory.users import find_users
from vmfork.hypervisor.qemu import PORTABLE
from vmfork.machine.emulator import list_openers
from vmfork.recipe.step import READY_LIMIT_S
from vmfork.store import TemplateStore
from vmfork.template.history import trace_steps
from vmfork.template.recipe_file import read_template
from vmfork.template.removal import list_persisted, remove_template
from vmfork.travel.fit import hardware_of
from vmfork.units import format_bytes, format_duration, format_mib, parse_duration_s

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmfork.config import FactoryConfig, Places
    from vmfork.progress import ProgressListener
    from vmfork.rpc.status import ServerStatus
    from vmfork.store import Manifest
    from vmfork.template.history import TracedStep
    from vmfork.travel.saved import Saved


# This much of a digest tells the layers of a host apart.
_DIGEST_SHOWN = 12


@click.group("template", cls=VerbGroup)
def command() -> None:
    """Build, list, show, verify, audit, save, load, push, pull, persist and remove templates."""


command.add_command(audit)


@command.command("build")
@click.argument("name", default="", shell_complete=template_names)
@click.option(
    "-f",
    "--file",
    "recipe_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Make it as [template.NAME] in FILE says.",
)
@click.option("--image", metavar="I", help="The image to boot.", shell_complete=image_names)
@click.option("--from", "source", metavar="S", help="Boot a container image, imported first: see image import.")
@cpus_option
@memory_option
@disk_option
@click.option("--machine", metavar="M", help="QEMU's machine type: auto (q35), q35, microvm.")
@click.option("--nic", is_flag=True, help="Give it a network card, which is down: --card says where it leads.")
@click.option("--max-cpus", type=int, metavar="N", help="Forks can be grown to N CPUs.")
@click.option("--max-memory", metavar="SIZE", help="Forks can be grown to SIZE of RAM.")
@click.option(
    "--run", "warm_up", multiple=True, metavar="CMD", help="Shell command to run before freezing. Repeatable."
)
@click.option("--package", "packages", multiple=True, metavar="P", help="Add a Debian package. Repeatable.")
@click.option("--pip", multiple=True, metavar="R", help="Install a requirement, or a file of them. Repeatable.")
@click.option(
    "--copy", "copies", multiple=True, metavar="HOST:GUEST", help="Copy a file or folder from here. Repeatable."
)
@click.option("-e", "--env", "variables", multiple=True, metavar="K[=V]", help=WARM_UP_HELP)
@click.option("--ready", default="", metavar="CMD", help="Shell command that must succeed before freezing.")
@click.option("--ready-timeout", metavar="S", help="Give up waiting for --ready after this time. Default: 2m.")
@click.option("--secret-path", "secret_paths", multiple=True, metavar="P", help="Do not freeze while P exists.")
@click.option("--secret-env", "secret_env", multiple=True, metavar="K", help="Do not freeze while a process has $K.")
@network_options
@click.option("--allow-secrets", is_flag=True, help="Freeze even so.")
@click.option("--portable", is_flag=True, help="Let its forks see a CPU that other hosts have too.")
@click.option("--reseed", metavar="WHO", hidden=True, help="For tests of a defence: both, agent, vmgenid or none.")
@click.option("--replace", is_flag=True, help="Replace a template of that name.")
@click.option("--no-cache", is_flag=True, help="Do every step again, and forget what earlier builds kept of them.")
@click.option("--keep-failed", is_flag=True, help="Leave the machine of a step that failed, to look into.")
@json_option
def build(
    name: str,
    recipe_file: Path | None,
    image: str | None,
    source: str | None,
    cpus: int | None,
    memory: str | None,
    disk: str | None,
    machine: str | None,
    nic: bool,
    max_cpus: int | None,
    max_memory: str | None,
    warm_up: tuple[str, ...],
    packages: tuple[str, ...],
    pip: tuple[str, ...],
    copies: tuple[str, ...],
    ready: str,
    ready_timeout: str | None,
    variables: tuple[str, ...],
    secret_paths: tuple[str, ...],
    secret_env: tuple[str, ...],
    network: str | None,
    allow: tuple[str, ...],
    network_log_only: bool,
    allow_secrets: bool,
    portable: bool,
    reseed: str | None,
    replace: bool,
    no_cache: bool,
    keep_failed: bool,
    as_json: bool,
) -> None:
    """Boot a machine, do what is asked or what a recipe says, freeze it as NAME."""
    recipe, said = None, {}
    if recipe_file is not None:
        name, recipe = read_template(recipe_file, name)
        said = {f"vm.{key}": value for key, value in recipe.vm.items()}
    settings = get_settings(
        said
        | {
            field: value
            for field, value in {
                "vm.image": image,
                "vm.cpus": cpus,
                "vm.memory_mib": memory,
                "vm.disk_mib": disk,
                "vm.machine": machine,
                "vm.nic": nic or None,
                "vm.max_cpus": max_cpus,
                "vm.max_memory_mib": max_memory,
                "vm.cpu_model": PORTABLE if portable else None,
                "vm.reseed": reseed,
            }.items()
            if value is not None
        },
        recipe_file=recipe_file,
    )
    files = dict(map(_parse_copy, copies))
    ready_limit_s = READY_LIMIT_S if ready_timeout is None else parse_duration_s(ready_timeout, field="ready-timeout")

    async def work(progress: ProgressListener) -> Template:
        await prepare_image(settings, progress)
        return await Template.build(
            name,
            settings.vm,
            recipe=None if recipe is None else dataclasses.replace(recipe, vm={}, base=None if image else recipe.base),
            from_=source or "",
            packages=packages,
            pip=pip,
            files=files,
            warm_up=warm_up,
            ready=ready,
            ready_timeout_s=ready_limit_s,
            env=parse_variables(variables),
            secret_paths=secret_paths,
            secret_env=secret_env,
            allow_secrets=allow_secrets,
            network=read_network(network, allow, log_only=network_log_only),
            replace=replace,
            cache=not no_cache,
            keep_failed=keep_failed,
            progress=progress,
        )

    with shown_progress() as progress:
        template = run_async(work(progress))
    m = template.manifest
    if as_json:
        show_json(_describe(m))
        return
    click.echo(
        f"template {m.name}: {_size(m.cpus, m.max_cpus, str)} CPU, "
        f"{_size(m.memory_mib, m.max_memory_mib, format_mib)}, {m.traits['accel']}, "
        f"{format_bytes(m.memory_allocated_bytes)} in use, booted in {format_duration(m.timings['boot_s'])}"
    )


def _parse_copy(text: str) -> tuple[str, str]:
    """The path in the guest, and that of what is copied there, of `HOST:GUEST`."""
    source, _, target = text.rpartition(":")
    if not source or not target:
        raise ConfigError("copy", text, f"{text!r} is not HOST:GUEST", hint="such as --copy app/:/srv/app")
    return target, source


@command.command("ls")
@click.option("--tree", is_flag=True, help="Each below the template whose fork it was frozen from, or that one's.")
@json_option
def list_all(tree: bool, as_json: bool) -> None:
    """List the templates."""
    found = run_async(_examine_all())
    drawn = Tree(found, name=_full_name, line=lambda each: each.get("ancestors", ()))
    if as_json:
        show_json(_nest(drawn) if tree else found)
        return
    rows = drawn.draw(top=False) if tree else (("", each) for each in found)
    show_table(("NAME", "IMAGE", "CPUS", "RAM", "IN USE", "STATE"), [_row(branch, each) for branch, each in rows])


def _full_name(found: Mapping[str, Any]) -> str:
    """As `Manifest.ancestors` has it: a template that was replaced is not what was frozen from forks of the former."""
    return f"{found['name']}/{found.get('generation', '')}"


def _nest(tree: Tree[dict[str, Any]], name: str = "") -> list[dict[str, Any]]:
    """Each with those below it, as `children`."""
    return [each | {"children": _nest(tree, _full_name(each))} for each in tree.below(name)]


def _row(branch: str, found: Mapping[str, Any]) -> Sequence[object]:
    name = branch + found["name"]
    if "image" not in found:
        return name, "", "", "", "", found["state"]
    return (
        name,
        found["image"],
        _size(found["cpus"], found["max_cpus"], str),
        _size(found["memory_mib"], found["max_memory_mib"], format_mib),
        format_bytes(found["memory_allocated_bytes"]),
        found["state"],
    )


@command.command("show")
@template_argument
@json_option
def show(name: str, as_json: bool) -> None:
    """Show what the template NAME is made of."""

    async def look() -> dict[str, Any]:
        return await _examine(name, must_exist=True) | {"opened_by": await _list_openers(name)}

    fields = run_async(look())
    if as_json:
        show_json(fields)
        return
    for key in ("traits", "timings"):
        fields |= {f"{key}.{name}": value for name, value in fields.pop(key).items()}
    done = enumerate(fields.pop("steps"), 1)
    fields |= {f"steps.{number}": f"{each['step']} ({format_duration(each['took_s'])})" for number, each in done}
    for key, value in fields.items():
        click.echo(f"{key}: {'; '.join(value) if isinstance(value, tuple) else value}")


@command.command("history")
@template_argument
@json_option
def history(name: str, as_json: bool) -> None:
    """Show the steps that made the template NAME, what each took, and what is kept of it."""
    places = find_places()
    steps = trace_steps(name, places=places)
    if as_json:
        show_json({"template": name, "steps": [dataclasses.asdict(step) for step in steps]})
        return
    rows = [
        (
            str(number),
            step.step,
            format_duration(step.took_s) + (" (before)" if step.reused else ""),
            step.layer[:_DIGEST_SHOWN],
            _show_size(step) if step.mib else "",
            ", ".join(step.shared_with),
        )
        for number, step in enumerate(steps, 1)
    ]
    show_table(("STEP", "", "TOOK", "LAYER", "SIZE", "SHARED WITH"), rows)


@command.command("verify")
@template_argument
@json_option
def verify(name: str, as_json: bool) -> None:
    """Compare every byte of the template NAME with what was frozen, and the template with this host."""

    async def check() -> None:
        await (await _open(name)).verify()

    run_async(check())
    if as_json:
        show_json({"verified": True, "template": name})
        return
    click.echo(f"template {name} is whole and fits this host")


@command.command("save")
@template_argument
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@json_option
def save(name: str, file: Path, as_json: bool) -> None:
    """Write the template NAME to FILE, for other hosts: a tar of an OCI layout. Secrets in its memory go along."""

    async def work(progress: ProgressListener) -> Saved:
        return await (await _open(name)).save(file, progress=progress)

    with shown_progress() as progress:
        saved = run_async(work(progress))
    if as_json:
        show_json({"template": name, "file": str(file), **dataclasses.asdict(saved)})
        return
    click.echo(f"template {name} is in {file}: {format_bytes(saved.size_bytes)}, {saved.digest}")


@command.command("push")
@template_argument
@click.argument("ref", metavar="REF")
@plain_http_option
@json_option
def push(name: str, ref: str, plain_http: bool, as_json: bool) -> None:
    """Put the template NAME into a registry as REF: HOST/REPOSITORY:TAG. What is there already is not sent again."""

    async def work(progress: ProgressListener) -> Saved:
        return await (await _open(name)).push(ref, plain_http=plain_http, progress=progress)

    with shown_progress() as progress:
        pushed = run_async(work(progress))
    if as_json:
        show_json({"template": name, "ref": ref, **dataclasses.asdict(pushed)})
        return
    sent = f"{format_bytes(pushed.sent_bytes)} of {format_bytes(pushed.size_bytes)} were sent"
    click.echo(f"template {name} is {ref}: {sent}, {pushed.digest}")


@command.command("pull")
@click.argument("ref", metavar="REF")
@click.argument("name", default="", required=False)
@click.option("--replace", is_flag=True, help="Replace a template of that name.")
@plain_http_option
@json_option
def pull(ref: str, name: str, replace: bool, plain_http: bool, as_json: bool) -> None:
    """Make a template of what a registry has as REF, as NAME or under the name that it had.

    It must fit this host, which is looked at before it is fetched. It is trusted as its registry is.
    """
    settings = get_settings()

    async def work(progress: ProgressListener) -> Template:
        return await Template.pull(
            ref, name, config=settings.vm, replace=replace, plain_http=plain_http, progress=progress
        )

    with shown_progress() as progress:
        template = run_async(work(progress))
    _tell_loaded(template, as_json=as_json)


@command.command("persist")
@template_argument
@json_option
def persist(name: str, as_json: bool) -> None:
    """Keep the template NAME on disk too: it is there after a reboot, and so is what replaces it, until it is removed.

    Its first use then brings it back to memory. With `persist = true` in [vm], each that is built, loaded or frozen is
    kept so.
    """

    async def work(progress: ProgressListener) -> Saved:
        return await (await _open(name)).persist(progress=progress)

    with shown_progress() as progress:
        saved = run_async(work(progress))
    if as_json:
        show_json({"template": name, **dataclasses.asdict(saved)})
        return
    click.echo(f"template {name} is on disk: {format_bytes(saved.size_bytes)}")


@command.command("load")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.argument("name", default="", required=False)
@click.option("--replace", is_flag=True, help="Replace a template of that name.")
@json_option
def load(file: Path, name: str, replace: bool, as_json: bool) -> None:
    """Make a template of FILE, which `save` wrote, as NAME or under the name that it had.

    It must fit this host: emulator, machine type, accelerator, processor. That is looked at before its memory is read.
    Whoever made FILE is trusted with all that its forks do.
    """
    settings = get_settings()

    async def work(progress: ProgressListener) -> Template:
        return await Template.load(file, name, config=settings.vm, replace=replace, progress=progress)

    with shown_progress() as progress:
        template = run_async(work(progress))
    _tell_loaded(template, as_json=as_json)


def _tell_loaded(template: Template, *, as_json: bool) -> None:
    m = template.manifest
    if as_json:
        show_json(_describe(m))
        return
    click.echo(f"template {m.name}: {format_bytes(m.memory_allocated_bytes)} in use, frozen {m.created_at}")


@command.command("rm")
@template_argument
@json_option
def remove(name: str, as_json: bool) -> None:
    """Remove the template NAME, and tell who uses it. Forks made from it run on."""
    places = find_places()
    users = find_users(name, places=places, served=run_async(_find_server(get_settings().factory, places)))
    run_async(remove_template(name, places=places))
    if as_json:
        forks = [{"id": fork.id, "owner_pid": fork.owner_pid} for fork in users.forks]
        show_json({"removed": True, "template": name, "forks": forks, "server_pid": users.server or None})
        return
    click.echo(f"removed template {name}")
    for line in users.describe():
        click.echo(f"note: {line}", err=True)


async def _find_server(config: FactoryConfig, places: Places) -> ServerStatus | None:
    try:
        return await ask_status(config, places)
    except VMForkError:  # one that cannot be asked keeps nobody from removing a template
        return None


def _size(have: int, most: int, spell: Callable[[int], str]) -> str:
    return spell(have) if most == have else f"{spell(have)} to {spell(most)}"


def _show_size(step: TracedStep) -> str:
    return format_mib(step.mib) + (f" + {format_mib(step.disk_mib)} of disk" if step.disk_mib else "")


async def _examine_all() -> list[dict[str, Any]]:
    places = find_places()
    here = TemplateStore(places.templates).list_names()
    return [
        await _examine(name) if name in here else {"name": name, "state": "on disk"}
        for name in sorted({*here, *list_persisted(places)})
    ]


async def _open(name: str) -> Template:
    """The template, for the emulator that `[vm]` names, as `run` opens it."""
    return await Template.open(name, config=get_settings().vm)


async def _examine(name: str, *, must_exist: bool = False) -> dict[str, Any]:
    """The manifest's fields, as far as they can be read, and `state`: `ok`, or the code of the error that `run` meets.

    The template is opened as `run` opens it, so that both say the same. A damaged one does not hide the others, unless
    it `must_exist`: then there is something to show, or an error.
    """
    found: dict[str, Any] = {"name": name}
    places = find_places()
    if must_exist:
        if TemplateStore(places.templates).find_generation(name) is None and name in list_persisted(places):
            await _open(name)
        TemplateStore(places.templates).read_manifest(name)
    try:
        found |= _describe(TemplateStore(find_places().templates).read_manifest(name))
        await _open(name)
    except VMForkError as error:
        return found | {"state": error.code, "error": describe_failure(error.code, error.message, command_hint(error))}
    return found | {"state": "ok"}


async def _list_openers(name: str) -> tuple[str, ...]:
    """The emulators of this host that would open the template, by their paths."""
    places = find_places()
    m = TemplateStore(places.templates).read_manifest(name)
    found = await list_openers(hardware_of(m), m.traits["qemu.version"], places=places)
    return tuple(str(binary.path) for binary in found)


def _describe(manifest: Manifest) -> dict[str, Any]:
    return dataclasses.asdict(manifest) | {"fingerprint": manifest.fingerprint}
