"""Programs shown in the first guide run as they are, and print what is shown beneath them, but for ids and times."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
from pathlib import Path

import pytest

from vmfork.aio import VM, Template
from vmfork.errors import TemplateNotFound

pytestmark = pytest.mark.vm

ROOT = Path(__file__).parents[2]


def shape_of(output: str) -> str:
    """`output` with what differs from run to run left out."""
    output = re.sub(r"\bvm-[0-9a-f]{12}\b", "vm-ID", output)
    return re.sub(r"\b0\.\d+\b", "SECONDS", output)


@pytest.mark.parametrize(("page", "template"), [("docs/guides/getting-started.md", "default")], ids=["guide"])
async def test_a_program_prints_what_is_shown(template_name, page, template) -> None:
    shown = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert shown
    for program, output in shown:
        said = io.StringIO()

        def run(program: str = program, said: io.StringIO = said) -> None:
            with contextlib.redirect_stdout(said):
                exec(compile(program, page, "exec"), {})

        try:
            await asyncio.to_thread(run)
        finally:
            with contextlib.suppress(TemplateNotFound):
                await (await Template.open(template)).remove()
        assert shape_of(said.getvalue()) == shape_of(output)
    assert await VM.list() == []
