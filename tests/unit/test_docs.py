"""What the documents promise by name is there: tests, files, commands, options."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import vmfork
from vmfork import errors
from vmfork.cli.main import cli
from vmfork.config.loader import SECTIONS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])
HAZARDS = ROOT / "docs" / "concepts" / "fork-safety.md"
MANUAL = ROOT / "docs" / "reference" / "cli.md"
NAMES = ROOT / "docs" / "reference" / "python.md"
CONFIGURATION = ROOT / "docs" / "reference" / "configuration.md"
TREE = ROOT / "docs" / "reference" / "errors.md"


def rows_of(page: Path) -> list[list[str]]:
    """The cells of the page's tables, heads left out."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in rows if row[0] != "hazard" and not set(row[0]) <= {"-"}]


def names_of_tests() -> set[str]:
    return {
        name for file in ROOT.glob("tests/**/test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }


def test_every_hazard_has_a_policy_a_status_and_tests_that_exist() -> None:
    rows = rows_of(HAZARDS)
    assert len(rows) > 15
    known = names_of_tests()
    for hazard, policy, test, status in rows:
        assert policy, hazard
        assert status, hazard
        assert set(re.findall(r"`(test_\w+)`", test)) <= known, hazard
        for folder in re.findall(r"`(tests/[\w/]+)`", test):
            assert (ROOT / folder).exists(), hazard
        # What nothing shows is told as such.
        assert test or status in {"not covered", "inherent", "yours"} or status.startswith("inherent;"), hazard


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/decisions/*.md")), ids=lambda page: page.name[:4])
def test_the_tests_that_a_decision_names_exist(page) -> None:
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`", page.read_text()):
        assert not name or f"def {name}(" in (ROOT / file).read_text(), name
        assert (ROOT / file).is_file(), file


def test_every_public_name_is_listed() -> None:
    kinds = {name for name in vmfork.__all__ if isinstance(getattr(vmfork, name), type)}
    raised = {name for name in kinds if issubclass(getattr(vmfork, name), vmfork.VMForkError)}
    listed = {name for cell, _ in rows_of(NAMES)[1:] for name in re.findall(r"`(\w+)`", cell)}
    assert listed == set(vmfork.__all__) - raised - {"aio"}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_of_the_configuration_is_listed(section) -> None:
    rows = CONFIGURATION.read_text().split(f"## [{section}]")[1].split("\n## ")[0]
    listed = {
        name
        for line in rows.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert listed == set(SECTIONS[section])


def test_the_tree_of_errors_is_the_one_in_the_code() -> None:
    assert TREE.read_text().split("```")[1] == (errors.__doc__ or "").split("```")[1]


def commands(group: click.Group, path: str = "vmfork"):
    """Every command with its path, groups left out."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = dict(commands(cli))


def usage_of(path: str) -> str:
    """How the manual says a command is called, from its table; `a|b` stands for either."""
    group, _, verb = path.rpartition(" ")
    for command, *_ in rows_of(MANUAL):
        spelt = command.strip("`").replace("\\|", "|").split("[")[0].split()
        if path.split() == spelt[: len(path.split())]:
            return command
        if spelt[: len(group.split())] == group.split() and verb in "".join(spelt[len(group.split()) :][:1]).split("|"):
            return command
    return ""


@pytest.mark.parametrize("path", COMMANDS)
def test_the_manual_has_every_command_and_option(path) -> None:
    usage = usage_of(path)
    assert usage, f"{path} is not in {MANUAL.name}"
    told = usage + "".join(line for line in MANUAL.read_text().splitlines() if not line.startswith("|"))
    for parameter in COMMANDS[path].params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert any(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", told) for name in parameter.opts), parameter


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_and_option_says_what_it_does(path) -> None:
    command = COMMANDS[path]
    assert command.help
    assert command.get_short_help_str(200).endswith(".")
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter


GROUPS = {path.rpartition(" ")[0] for path in COMMANDS}


@pytest.mark.parametrize("path", sorted(GROUPS))
def test_the_help_of_a_group_cuts_no_sentence(path) -> None:
    shown = " ".join(CliRunner().invoke(cli, [*path.split()[1:], "--help"]).output.split())
    verbs = {name.rpartition(" ")[2]: command for name, command in COMMANDS.items() if name.rpartition(" ")[0] == path}
    for verb, command in verbs.items():
        assert f"{verb} {command.get_short_help_str(500)}" in shown
