"""The long form of what `vmfork cp` holds in memory: a gigabyte, in a machine that has room for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.vm.cli_runner import vmfork
from tests.vm.test_cp import check_round_trip
from vmfork.aio import Template, VMConfig

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.limit_s(600)]

GIGABYTE = 1024 * 1024 * 1024


def test_a_gigabyte_goes_in_and_comes_back_with_flat_memory_on_both_sides(instance, tmp_path: Path) -> None:
    template = asyncio.run(Template.build("cp-large", VMConfig(memory_mib=2560)))
    try:
        vmfork("start", "-t", "cp-large", "--name", "cp-large").check()
        try:
            check_round_trip("cp-large", "/srv", tmp_path, GIGABYTE)
        finally:
            vmfork("stop", "--grace", "0", "cp-large").check()
    finally:
        asyncio.run(template.remove())
