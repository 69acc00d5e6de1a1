"""What README, guides and concepts print is run by a test, or says why not; a command in a line of text exists."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from tests import documents
from tests.documents import PAGES, ROOT, Block, fault_of, read_blocks
from vmfork.cli.main import cli

ALL = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_run_or_says_why_not(page) -> None:
    blocks = read_blocks(page)
    assert page.read_text().count("\n```") + page.read_text().startswith("```") == 2 * (
        len(blocks) + sum(block.output is not None for block in blocks)
    )
    for at, block in enumerate(blocks):
        later = "\n".join(other.text for other in blocks[at + 1 :])
        assert fault_of(block, later) == "", block.place
        for named in re.findall(r"tests/[\w/.]+", block.reason):
            assert (ROOT / named).exists(), block.place


def block(language: str, text: str = "x", **more: str) -> Block:
    return Block(ROOT / "README.md", 1, language, text, **more)


@pytest.mark.parametrize(
    "nobodys",
    [
        block(""),
        block("json"),
        block("sh", mark="not run"),
        block("sh", mark="sometimes run", reason="it is slow"),
        block("toml"),
        block("console", "# as root"),
        block("python", mark="saved", name="other.py"),
        block("python", mark="saved"),
    ],
    ids=str,
)
def test_a_block_that_nobody_runs_is_found(nobodys) -> None:
    assert fault_of(nobodys, "python client.py")


def test_a_page_is_read_as_it_is_written(tmp_path, monkeypatch) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    page.write_text(
        "The program, `a.py`:\n\n<!-- saved -->\n```python\nprint(1)\n```\n\nIt prints:\n\n<!-- numbers differ -->\n"
        "```\n1\n```\n\n<!-- not run: a drawing -->\n```\n----\n```\n\n```console\n$ b\nc\n$ d\n```\n"
    )
    program, drawing, session = read_blocks(page)
    assert (program.name, program.mark, program.text, program.shown) == ("a.py", "saved", "print(1)\n", ["1"])
    assert program.output is not None
    assert program.output.mark == "numbers differ"
    assert (drawing.mark, drawing.reason) == ("not run", "a drawing")
    assert (session.commands, session.shown, session.line) == ("b\nd", ["c"], 20)


def commands_in_lines() -> list[tuple[str, str]]:
    found = []
    for page in ALL:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        lines = re.findall(r"`(vmfork [^`\n]+)`", text)
        # A pattern of a command, as in the manual, stands for several.
        found += [(str(page.relative_to(ROOT)), line) for line in lines if not re.search(r"[\[|\\]|vmfork NAME", line)]
    return found


@pytest.mark.parametrize(("page", "line"), commands_in_lines())
def test_a_command_in_a_line_is_one(page, line) -> None:
    """Its command and options exist. What stands for a value may be left out, or be a word in capitals."""
    command: click.Command = cli
    context = click.Context(command, info_name="vmfork")
    words = [word for word in shlex.split(line)[1:] if word != "..."]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, command, words = command.resolve_command(context, words)
        assert command is not None
        context = click.Context(command, parent=context, info_name=name)
    try:
        command.make_context(context.info_name, ["1" if word == "N" else word for word in words], parent=context.parent)
    except (click.exceptions.Exit, click.exceptions.NoArgsIsHelpError):
        pass
    except click.UsageError as error:
        told = error.format_message()
        if "Missing argument" not in told and "requires an argument" not in told:
            raise
