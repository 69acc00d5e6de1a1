"""The host refuses once, at each place where a call without a machine touches it: the call ends with a hint."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.refusals import NUMBERS, refusing
from vmfork.aio import VM, Factory, FactoryConfig, InternalError, Template, VMConfig, VMForkError
from vmfork.cli.main import main

ROOT = Path(__file__).parents[3]
NO_ID = "0123456789ab"


async def take(config: FactoryConfig, *, fetch_only: bool = False) -> None:
    async with Factory(config, fetch_only=fetch_only) as factory, await factory.get_vm():
        pass


ABSENT = VMConfig(image="none")
CALLS = {
    "Template.list": Template.list,
    "Template.open": lambda: Template.open("none"),
    "Template.ensure": lambda: Template.ensure("none", ABSENT),
    "Template.build": lambda: Template.build("none", ABSENT),
    "VM.list": VM.list,
    "VM.attach": lambda: VM.attach(NO_ID),
    "VM.boot": lambda: VM.boot(ABSENT),
    "Factory": lambda: take(FactoryConfig(vm=ABSENT)),
    "Factory of a template": lambda: take(FactoryConfig(template=True), fetch_only=True),
    "Factory of a server": lambda: take(FactoryConfig(vm=ABSENT, remote=True)),
}
COMMANDS = (
    "config", "config --json", "image ls", "image ls --json", "image rm none", "image build none --package NOT",
    "template ls --json", "template show none", "template verify none", "template rm none --json",
    "template audit none", "template build none --image none", "run -t none -- true", "run -t none --json -- true",
    "factory status", "factory destroy", "factory init --config none.toml",
)  # fmt: skip


def points(count: int):
    """Each place once, the errors in turn; where there are many, every so many."""
    step = max(1, count // 40)
    return [(at, NUMBERS[at // step % len(NUMBERS)]) for at in range(0, count, step)]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_ends_in_an_error_with_a_hint(call) -> None:
    with suppress(VMForkError):
        asyncio.run(call())  # what is imported once is imported
    with refusing() as counted, suppress(VMForkError):
        asyncio.run(call())
    assert counted.seen
    for at, number in points(counted.seen):
        error = None
        with refusing(at, number) as refusal:
            try:
                asyncio.run(call())
            except VMForkError as raised:
                error = raised
        assert not isinstance(error, InternalError), refusal
        assert error is None or error.hint, (error, refusal)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_what_and_what_to_do(command, capsys) -> None:
    main(command.split())
    with refusing() as counted:
        usual = main(command.split())
    capsys.readouterr()
    for at, number in points(counted.seen):
        with refusing(at, number) as refusal:
            status = main(command.split())
        said = capsys.readouterr().err
        assert "bug" not in said, refusal
        assert "Traceback" not in said, refusal
        assert status == usual or said.startswith("error: "), (status, said, refusal)
        assert not said or "hint: " in said, (said, refusal)


def test_the_blocking_api_is_behind_the_same_border(instance) -> None:
    """In an interpreter of its own: its loop's thread never ends, and tests here fork."""
    program = """
import vmfork
from tests.refusals import NUMBERS, refusing
from vmfork import ConfigError, HostError, TemplateNotFound

def ends(call):
    try:
        call()
    except (HostError, TemplateNotFound) as error:
        assert error.hint, error
        return type(error)

calls = vmfork.VM.list, lambda: vmfork.Template.open("none"), vmfork.Template.list
for call in calls:
    ends(call)
    with refusing() as counted:
        ends(call)
    found = set()
    for at in range(counted.seen):
        with refusing(at, NUMBERS[at % len(NUMBERS)]):
            found.add(ends(call))
    assert HostError in found, found
try:
    vmfork.VM.attach("0123456789ab", places="/x")
except ConfigError as error:
    assert error.field == "places"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=ROOT)
