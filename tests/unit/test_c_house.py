"""The C of all programs here: one look, guarded headers, checked numbers, includes that point down."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_architecture import read_layers

ROOT = Path(__file__).parents[2]
PROGRAMS = ("guest", "keeper", "preload", "fence", "broker", "copier")
SOURCES = sorted(path for program in PROGRAMS for path in (ROOT / program).glob("*.[ch]"))
TARGETS = sorted((ROOT / "tests" / "fuzz").glob("*.c"))
HEADERS = [path for path in SOURCES if path.suffix == ".h"]

# They take a blank, a sign or a number too large for what was meant, and say nothing.
UNCHECKED_NUMBERS = re.compile(r"\b(?:ato(?:i|l|ll)|(?:v?s|f)?scanf|strto(?:ul|ull|imax|umax))\(")

every_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


def includes(path: Path, text: str) -> set[str]:
    """The parts of the same program that a source includes, but for its own header."""
    return set(re.findall(r'^#include "(\w+)\.h"', text, re.MULTILINE)) - {path.stem}


def wrong_includes(layers: list[list[str]], part: str, names: set[str]) -> list[str]:
    level = {name: number for number, line in enumerate(layers) for name in line}
    return sorted(f"{part} includes {name}" for name in names if level[name] <= level[part])


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_drawing_of_a_program_names_every_part_once(program) -> None:
    drawn = [name for line in layers_of(program) for name in line]
    assert sorted(drawn) == sorted({path.stem for path in (ROOT / program).glob("*.[ch]")})


@every_source
def test_includes_point_down(path) -> None:
    assert wrong_includes(layers_of(path.parent.name), path.stem, includes(path, path.read_text())) == []


def layers_of(program: str) -> list[list[str]]:
    drawing = (ROOT / program / "README.md").read_text().partition("## Layers")[2]
    return read_layers(drawing)


def test_an_include_up_or_sideways_is_seen() -> None:
    layers = [["main"], ["one", "other"], ["leaf"]]
    assert wrong_includes(layers, "one", {"main", "other", "leaf"}) == ["one includes main", "one includes other"]
    assert wrong_includes(layers, "main", {"one", "leaf"}) == []


@pytest.mark.needs("clang-format")
@pytest.mark.parametrize("path", [*SOURCES, *TARGETS], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_is_formatted(path) -> None:
    """By the clang-format that the set-up installs: another version formats some lines another way."""
    program = Path(sys.executable).with_name("clang-format")
    done = subprocess.run(
        [program, "--dry-run", "--Werror", path], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", HEADERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_header_is_guarded_by_its_name_and_says_what_it_is(path) -> None:
    guard = f"VMFORK_{path.stem.upper()}_H"
    assert re.fullmatch(rf"/\* .*? \*/\n#ifndef {guard}\n#define {guard}\n.*#endif\n", path.read_text(), re.DOTALL)


@every_source
def test_numbers_are_read_by_what_checks_them(path) -> None:
    assert UNCHECKED_NUMBERS.findall(path.read_text()) == []
