"""What a machine can go back to is kept as long as it may come back, and no longer."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.unit.machine.test_ended import leave, vms  # noqa: F401 - a fixture
from tests.unit.store.samples import build_small
from vmfork.config import find_places
from vmfork.machine.ended import STOPPED
from vmfork.machine.folder import find_record, folder_of, note_replaced, sweep_vms
from vmfork.machine.lifetime import IDLE_OVER, TTL_OVER
from vmfork.store import TemplateStore
from vmfork.template.checkpoints import find_waste, remove_checkpoints, sweep


@pytest.fixture
def keep(vms):  # noqa: F811
    """Keeps something for a machine of that id."""
    made = set()

    def keep(vm_id: str, name: str = "1", **changes: object) -> TemplateStore:
        made.add(vm_id)
        store = TemplateStore(find_places().checkpoints / vm_id)
        asyncio.run(build_small(store, name, timings={"pause_s": 0.002}, **changes))
        return store

    yield keep
    for vm_id in made:
        remove_checkpoints(vm_id, places=find_places())
        assert not (find_places().checkpoints / vm_id).exists()


@pytest.mark.parametrize(
    ("reason", "stays"),
    [
        ("it ended by itself", True),
        ("its guest halted", True),
        (None, True),
        (STOPPED, False),
        (TTL_OVER, False),
        (IDLE_OVER, False),
    ],
)
def test_how_it_ended_says_whether_it_may_come_back(vms, keep, reason, stays) -> None:  # noqa: F811
    vm_id = leave(vms, told=reason is not None)
    if reason is not None:
        note = json.loads((vms / vm_id / "ended.json").read_text())
        (vms / vm_id / "ended.json").write_text(json.dumps(note | {"reason": reason}))
    store = keep(vm_id)
    sweep(find_places())
    assert store.list_names() == ["1"]  # nobody has seen yet that it has ended
    sweep_vms(vms)
    assert find_waste(find_places()) == ([] if stays else [store.folder])
    sweep(find_places())
    assert store.folder.exists() == stays


def test_one_that_is_on_its_way_back_keeps_them_though_it_was_stopped_for_that(vms, keep) -> None:  # noqa: F811
    vm_id = leave(vms)
    store = keep(vm_id)
    note_replaced(vms / vm_id, find_record(vms / vm_id).process)
    sweep_vms(vms)
    sweep(find_places())
    assert store.list_names() == ["1"]
    (folder_of(vms, vm_id) / "vm.json").unlink()  # nothing is known of it any more
    sweep(find_places())
    assert not store.folder.exists()
