"""Tests that are divided among hosts: none is left out, and whoever fails or is ended is told."""

from __future__ import annotations

import subprocess
import sys

from hosts.parts import count_tests, divide
from hypothesis import given
from hypothesis import strategies as st

# One writes half a line, one ends with an error, one says nothing.
PROGRAM = """
import os, sys
from hosts.parts import run_at_once
def half(): os.write(1, b"ha"); os.write(1, b"lf"); return 0
def wrong(): print("what is wrong", file=sys.stderr, flush=True); return 3
def silent(): return 0
sys.exit(run_at_once([half, wrong, silent]))
"""


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 50)), st.integers(1, 4))
def test_each_file_is_in_one_part_and_no_part_is_much_larger(counts, parts) -> None:
    divided = divide(counts, parts)
    assert sorted(file for part in divided for file in part) == sorted(counts)
    assert len(divided) == min(parts, len(counts))
    sizes = [sum(counts[file] for file in part) for part in divided]
    assert not sizes or max(sizes) - min(sizes) <= max(counts.values())


def test_files_are_counted_by_what_pytest_would_run() -> None:
    file = "tests/unit/hosts/test_parts.py"
    assert count_tests(["-k", "counted_by", file]) == {file: 1}


def test_each_line_tells_whose_it_is_and_a_failure_is_all_of_theirs() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=False, cwd="tools", text=True)
    assert sorted(ended.stdout.splitlines()) == ["1| half", "2| what is wrong"]
    assert ended.returncode == 3
