"""The guide "from requirements.txt to a fork in a second", as printed: its packages come from a package index."""

from __future__ import annotations

import re
import sys

import pytest

from tests.documents import ROOT, read_blocks
from tests.vm.cli_runner import run, vmfork

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.limit_s(600)]

GUIDE = ROOT / "docs" / "guides" / "recipes.md"
_FILE = re.compile(r"^`([\w/.]+)`:\n\n<!--[^\n]*-->\n```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that the guide names, with what it prints in them."""
    for name, text in _FILE.findall(GUIDE.read_text()):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    vmfork("template", "rm", "web").check()
    vmfork("gc", "--layers").check()


def test_its_commands_and_its_program_print_what_it_shows(folder) -> None:
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {"requirements.txt", "main.py", "vmfork.toml"}
    (session,) = (block for block in read_blocks(GUIDE) if block.language == "console")
    build, show = session.commands.splitlines()
    vmfork(*build.split()[1:], limit_s=400).check()
    assert vmfork(*show.split()[1:]).check().out.splitlines() == session.shown
    program = next(block for block in read_blocks(GUIDE) if "Template.ensure" in block.text)
    assert run(sys.executable, "-c", program.text).check().out.splitlines() == program.shown
