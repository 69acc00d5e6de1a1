"""Each test has the whole shop for itself, in a machine of its own, as it was filled: nothing is cleaned up.

pytest examples/suite, or with pytest-xdist: pytest -n 4 examples/suite
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfork import VM


def test_what_is_sold_is_no_longer_there(vm: VM) -> None:
    assert vm.run_code("sell('ink')\ncount('ink')", check=True).value == "0"


def test_another_test_finds_the_shop_as_it_was(vm: VM) -> None:
    assert vm.run_code("count('ink')", check=True).value == "1"


def test_nobody_buys_more_than_there_is(vm: VM) -> None:
    sold = vm.run_code("sell('ink', 2)")
    assert sold.error.type == "IntegrityError"
    assert vm.run_code("count('ink')").value == "1"


def test_a_shop_that_burns_down_is_rebuilt_by_nobody(vm: VM) -> None:
    vm.shell("rm -rf /root/*", timeout_s=60, check=True)
    assert not vm.exists("/root/shop.db")


@pytest.mark.vmfork(env={"SHOP": "north"})
def test_two_shops_share_nothing(vm_factory: Callable[..., VM]) -> None:
    north, south = vm_factory(), vm_factory(env={"SHOP": "south"})
    north.run_code("sell('pen', 10)", check=True)
    told = [shop.run_code("import os\nos.environ['SHOP'], count('pen')").value for shop in (north, south)]
    assert told == ["('north', 0)", "('south', 10)"]
