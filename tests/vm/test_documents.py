"""README, guides and concepts, followed from top to bottom: every command succeeds, every output is what is shown.

How a block is run, and what may differ from run to run, is in `tests/documents.py`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest

from tests.documents import GOES_ON, PAGES, ROOT, Block, read_blocks
from tests.ports import free_port
from tests.registry import Registry, running_registry
from tests.rules.capabilities import find_program, find_static_busybox, need
from tests.vm.cli_runner import COMMAND, Running, vmfork

# Images are built on the way, under emulation.
pytestmark = [pytest.mark.vm, pytest.mark.needs("make"), pytest.mark.limit_s(1200)]

_BLOCK_LIMIT_S = 600
_RUN = [page for page in PAGES if any(block.mark != "not run" for block in read_blocks(page))]
# A new image is tried out before it is used: under KVM, and for its least memory.
_BOXED = [pytest.mark.slow, pytest.mark.needs("busybox")]
_BY_UMOCI = pytest.mark.needs("umoci")
_REGISTRY = "registry.example"
_BY_REGISTRY = pytest.mark.needs("docker-registry", "oras")


def _marks_of(page: Path) -> list[pytest.MarkDecorator]:
    by_registry = any(_REGISTRY in block.text for block in read_blocks(page) if block.mark != "not run")
    text = page.read_text()
    boxed = _BOXED if "command -v busybox" in text else []
    return [*boxed, *([_BY_UMOCI] if "$ umoci" in text else ()), *([_BY_REGISTRY] if by_registry else ())]


_PARAMS = [pytest.param(page, id=str(page.relative_to(ROOT)), marks=_marks_of(page)) for page in _RUN]
# What differs from run to run, and from host to host: ids and keys, whatever is measured, and how the guest is run.
_DIFFER = ((r"\b[0-9a-f]{12,}\b", "ID"), (r"\b\d+\.\d+\b", "N"), (r"\b(?:kvm|tcg)\b", "ACCEL"))
_MAKE = shutil.which("make") or "make"
# For a host that has none.
_CURL = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())"


@dataclass
class Reader:
    """Follows a page in `folder`, where `.venv/bin` has the commands of the environment that the tests run in."""

    folder: Path
    env: dict[str, str]
    port: int
    going_on: ExitStack = field(default_factory=ExitStack)
    last: Running | None = None

    def follow(self, block: Block) -> None:
        if block.mark == "not run":
            return
        if block.name:
            (self.folder / block.name).write_text(self._own(block.text))
        if block.language == "toml":
            self._run("vmfork config")
        elif block.mark in GOES_ON:
            if block.mark != GOES_ON[0]:
                self._end_last()
            self._begin(block)
        elif block.mark != "saved":
            self._check(block)

    def _check(self, block: Block) -> None:
        """A program prints what is shown; commands print that among other lines, such as what was built."""
        if block.language == "python":
            (self.folder / "program.py").write_text(self._own(block.text))
            said = self._run("python program.py").splitlines()
            assert self._shape(block, said) == self._shape(block, block.shown), block.place
        elif block.mark != "in the checkout":
            self._compare(block, self._run(self._own(block.commands)).splitlines())
        elif (ROOT / "Makefile").exists():
            self._run(f"cd {shlex.quote(str(ROOT))}\n{block.commands}")

    def _begin(self, block: Block) -> None:
        script = ("bash", "-c", f"cd {shlex.quote(str(self.folder))} && exec {self._own(block.commands)}")
        self.last = running = self.going_on.enter_context(Running(command=script, env=self.env))
        running.wait_for(block.reason)
        self._compare(block, running.seen(2).splitlines())

    def _end_last(self) -> None:
        """As by Ctrl-C in its terminal, which is told by its status."""
        assert self.last is not None
        self.last.interrupt(signal.SIGINT)
        assert self.last.end().status in (0, 128 + signal.SIGINT)

    def _compare(self, block: Block, said: list[str]) -> None:
        shown = self._shape(block, block.shown)
        assert [line for line in self._shape(block, said) if line in shown] == shown, (block.place, said)

    def _run(self, script: str) -> str:
        """What it printed on standard output."""
        command = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, timeout=_BLOCK_LIMIT_S, check=False, text=True
        )
        assert done.returncode == 0, (script, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, (script, done.stderr)
        return done.stdout

    def _own(self, text: str) -> str:
        """A port of this host may be another's; other hosts are this one."""
        text = re.sub(r"\b(?:first|second)\.example\b", "localhost", text)
        if _REGISTRY in text:
            text = text.replace(_REGISTRY, self._registry.host)
        return re.sub(r"\b(127\.0\.0\.1|localhost):(?:9100|7300)\b", rf"\1:{self.port}", text)

    @cached_property
    def _registry(self) -> Registry:
        """One that runs from now on, in the place of the page's."""
        return self.going_on.enter_context(running_registry(self.folder / ".registry"))

    def _shape(self, block: Block, lines: list[str]) -> list[str]:
        """What must be alike; nothing where the page shows none."""
        if not block.shown:
            return []
        differ = [*_DIFFER, (re.escape(self.env["VMFORK_RUNTIME_DIR"]), "/run/vmfork")]
        if block.output is not None and block.output.mark == "numbers differ":
            differ.append((r"\d+", "N"))
        lines = [self._own(line) for line in lines]
        for pattern, word in differ:
            lines = [re.sub(pattern, word, line) for line in lines]
        return lines


def make_commands(folder: Path) -> Path:
    folder.mkdir(parents=True)
    # What is installed is what the tests run in: make is not to install anything, however new the sources are.
    make = (_MAKE, "-o", ".venv/.ready", f"BIN={Path(sys.executable).parent}")
    programs = {"vmfork": COMMAND, "python": (sys.executable,), "make": make}
    if shutil.which("curl") is None:
        programs["curl"] = (sys.executable, "-c", _CURL)
    if (busybox := find_static_busybox()) is not None:
        shutil.copy(busybox, folder / "busybox")  # pages make images of it
    if (umoci := find_program("umoci")) is not None:
        programs["umoci"] = (umoci,)
    for name, argv in programs.items():
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join(argv)} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


def _names(kind: str) -> set[str]:
    return {made["name"] for made in json.loads(vmfork(kind, "ls", "--json").check().out)}


def _built_by_pages() -> set[str]:
    return {name for page in _RUN for name in re.findall(r"vmfork image build (\w+)", page.read_text())}


@pytest.fixture(scope="module")
def default(instance):
    """The image and the template that pages share: the first command of a reader makes them.

    Of the images that pages build, those with the same packages are built once. They are removed with the last page.
    """
    need("mmdebstrap")
    vmfork("run", "--", "true", limit_s=_BLOCK_LIMIT_S).check()
    yield
    vmfork("template", "rm", "default").check()
    # Other images are those of tests that run beside this one.
    for name in _names("image") & _built_by_pages():
        vmfork("image", "rm", "--", name).check()


@pytest.fixture
def reader(tmp_path, default):
    """One in a new folder; the templates that he makes are removed."""
    before = _names("template")
    commands = make_commands(tmp_path / ".venv" / "bin")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    env["PATH"] = f"{commands}:{env['PATH']}"
    made = Reader(tmp_path, env, free_port())
    try:
        with made.going_on:
            yield made
    finally:
        for name in _names("template") - before:
            vmfork("template", "rm", "--", name).check()
        vmfork("gc", "--layers").check()


@pytest.mark.parametrize("page", _PARAMS)
def test_a_reader_meets_no_failure(reader, page) -> None:
    for block in read_blocks(page):
        reader.follow(block)
