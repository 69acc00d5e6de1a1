"""Options that several commands share, and the settings they lead to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import click

from vmfork.cli.complete import template_names
from vmfork.cli.show import json_document
from vmfork.config.instance import Instance
from vmfork.config.loader import load_settings
from vmfork.config.places import find_places
from vmfork.errors import ConfigError
from vmfork.units import parse_duration_s

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmfork.config.loader import Settings
    from vmfork.progress import ProgressListener


class VerbGroup(click.Group):
    """Its help shows the whole summary of each verb. click cuts a sentence that does not fit on one line."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.get_short_help_str(limit=500)) for name, verb in self.commands.items()])


def _owe_json(_context: click.Context, _option: click.Parameter, asked: bool) -> bool:  # noqa: FBT001, RUF100 - click's
    json_document.is_owed = asked
    return asked


# A command line is shown to every user of the host (`ps`), and kept in the history of a shell.
VARIABLE_HELP = (
    "Set a variable. Repeatable. K alone takes its value from the environment: "
    "what stands on a command line, every user of this host can see."
)
PORT_HELP = (
    "Forward a port of the host to a port of the guest. Repeatable. HOST is a port, ADDRESS:PORT or the path of a "
    "socket; without it a free port of 127.0.0.1 is taken."
)
WARM_UP_HELP = f"For --run and --ready: {VARIABLE_HELP[0].lower()}{VARIABLE_HELP[1:]}"

# Eager, so that a mistake in the other options is told in JSON too.
json_option = click.option(
    "--json", "as_json", is_flag=True, is_eager=True, callback=_owe_json, help="Print one JSON document."
)
config_option = click.option(
    "--config", "config_file", type=click.Path(path_type=Path), metavar="FILE", help="Read this vmfork.toml."
)
template_option = click.option(
    "-t", "--template", "name", metavar="NAME", help="Fork this template.", shell_complete=template_names
)
template_argument = click.argument("name", shell_complete=template_names)
plain_http_option = click.option("--plain-http", is_flag=True, help="Speak no TLS with the registry.")
no_factory_option = click.option("--no-factory", is_flag=True, help="Leave the factory of [factory] alone.")
# Of a machine that is left running.
env_option = click.option(
    "-e", "--env", "variables", multiple=True, metavar="K[=V]", help="Set a variable of all its programs."
)
files_option = click.option(
    "--file", "files", multiple=True, metavar="HOST:GUEST[:MODE]", help="Put a file or a folder into it, with modes."
)
cpus_option = click.option("--cpus", type=int, metavar="N", help="Virtual CPUs.")
isolation_option = click.option(
    "--require-isolation",
    metavar="LEVEL",
    help="Fail where the host keeps an emulator from it by less: basic, namespaces, full.",
)
card_option = click.option(
    "--card",
    default="none",
    metavar="none|restricted|open|passt",
    help="What its network card leads to: nothing, nothing but itself, or what this host reaches; by passt, all of that"
    " but this host's loopback.",
)
guest_fork_option = click.option(
    "--allow-guest-fork",
    type=int,
    default=0,
    metavar="N",
    help="Let programs fork the machine (vmfork_guest.fork()), to N machines beside it. Default: 0.",
)
wait_option = click.option("--wait", metavar="S", help="Wait this long for the host to have room for it: 30, 5m.")
memory_option = click.option("--memory", metavar="SIZE", help="Guest RAM: 256M, 1G, or a number of MiB.")

disk_option = click.option("--disk", metavar="SIZE", help="A disk of SIZE at /scratch, gone with the machine: 2G.")


def get_settings(
    overrides: Mapping[str, Any] | None = None, *, config_file: Path | None = None, recipe_file: Path | None = None
) -> Settings:
    """The settings in force for the command that runs. Its own file comes before that of `vmfork --config`.

    What `recipe_file` says of machines and of images comes before what the configuration does.
    """
    path = config_file or click.get_current_context().find_root().params.get("config_file")
    return load_settings(path, None, overrides, recipe_file=recipe_file)


async def prepare_image(settings: Settings, progress: ProgressListener) -> None:
    """The image to boot is made of what the settings say that it is made of, if they say that."""
    name = settings.vm.image
    if (made_of := settings.find_made_of(name)) is not None:
        from vmfork.machine.prepare import ensure_image  # noqa: PLC0415 - most commands need none

        await ensure_image(name, made_of=made_of, instance=Instance(find_places(), progress))


class Size(TypedDict):
    """How large a machine is to be; `None` leaves it as it is."""

    cpus: int | None
    memory_mib: int | None


def given_size(settings: Settings, *, cpus: int | None, memory: str | None) -> Size:
    """`cpus` and `memory_mib` of a machine, as the settings have them where the options gave one; else `None`."""
    return {
        "cpus": None if cpus is None else settings.vm.cpus,
        "memory_mib": None if memory is None else settings.vm.memory_mib,
    }


def parse_variables(texts: Iterable[str], *, field: str = "env", option: str = "-e") -> dict[str, str]:
    """The variables of `K=V`, or `K` for our own value of it, of which the last counts.

    Raises `ConfigError`, about `field`, for which `option` was given.
    """
    return dict(_parse_variable(text, field, option) for text in texts)


def _parse_variable(text: str, field: str, option: str) -> tuple[str, str]:
    """Name and value of `K=V`; a bare `K` has our own value."""
    key, equals, value = text.partition("=")
    if not key:
        hint = f"write {option} NAME=VALUE, or {option} NAME for its value here"
        raise ConfigError(field, text, f"{text!r} is not K=V", hint=hint)
    if equals:
        return key, value
    if key not in os.environ:
        raise ConfigError(field, text, f"{key} is not set here", hint=f"give it a value: {option} {key}=VALUE")
    return key, os.environ[key]


def parse_label(text: str) -> tuple[str, str]:
    """Key and value of `K=V`."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ConfigError("label", text, f"{text!r} is not K=V", hint="write --label KEY=VALUE")
    return key, value


def parse_limit(text: str | None, *, field: str) -> float | None:
    """Seconds, more than none; `None` is no limit. Raises `ConfigError` for a time that would be over at once."""
    if text is None:
        return None
    seconds = parse_duration_s(text, field=field)
    if seconds == 0:
        raise ConfigError(field, text, "must be more than 0", hint="leave it out for no limit")
    return seconds
