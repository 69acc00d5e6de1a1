"""The host refuses once, at each place where a machine's life touches it: an error with a hint, and no machine left."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.vm.cli_runner import run, vmfork
from tests.vm.refused import LIVES

pytestmark = [pytest.mark.vm, pytest.mark.limit_s(600)]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("life", LIVES)
def test_a_life_ends_in_an_error_with_a_hint_and_leaves_no_machine(template_name, life) -> None:
    done = run(sys.executable, "-m", "tests.vm.refused", life, template_name, cwd=ROOT, limit_s=580)
    # A folder that could not be removed, because that was refused, is left to the next sweep.
    vmfork("gc").check()
    assert done.status == 0, done.err
