"""What fuzzers found once is replayed, by whatever compiler with sanitizers is here: `make fuzz` looks for more."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from fuzz import FUZZ, PROGRAMS, ROOT, sources_of

from tests.fuzz.client import KINDS, STREAMS, take
from tests.rules.capabilities import need

if TYPE_CHECKING:
    from pathlib import Path

    from tests.sanitized import Objects

SKIPPED = 77


def corpus(target: str) -> list[Path]:
    return sorted((FUZZ / "corpus" / target).iterdir())


def replay(target: str, objects: Objects, tmp_path: Path, *inputs: Path) -> subprocess.CompletedProcess[str]:
    binary, root = tmp_path / target, tmp_path / "root"
    root.mkdir(mode=0o755)
    own = (str(FUZZ / f"{target}.c"), str(FUZZ / "replay.c"))
    objects.link(binary, objects.compile(sources_of(target)), "-I", str(ROOT / PROGRAMS[target].folder), *own)
    return subprocess.run(
        [binary, *inputs],
        # The agent's has no /proc any more, where leaks are looked for; tests/unit/guest/test_fuzz.py does.
        env={"VMFORK_FUZZ_ROOT": str(root), "ASAN_OPTIONS": f"detect_leaks={int(target != 'agent')}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.limit_s(400)
@pytest.mark.parametrize("target", PROGRAMS)
def test_what_was_found_for_a_program_harms_it_no_more(target: str, objects, tmp_path: Path) -> None:
    inputs = corpus(target)
    assert inputs
    done = replay(target, objects, tmp_path, *inputs)
    if target == "agent" and os.geteuid() != 0:
        need("another-root", found=done.returncode != SKIPPED)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{len(inputs)} inputs\n", "")


@pytest.mark.parametrize("path", corpus("host"), ids=lambda path: path.name)
async def test_what_was_found_for_the_host_ends_in_values_and_errors_of_ours(path: Path) -> None:
    await take(path.read_bytes())


def test_every_kind_of_request_is_among_the_inputs_of_the_host() -> None:
    """The stream is in bytes 6 to 9 of a frame, and the first byte of an input is no part of it."""
    streams = {int.from_bytes(path.read_bytes()[6:10]) for path in corpus("host")}
    assert streams >= {STREAMS[kind] for kind in KINDS}
