"""The checkpoints of machines that stand alone, on disk: each machine's in a store of its own.

```
CHECKPOINTS/ID/NAME/      as TEMPLATES/NAME (store/store.py), of the machine ID
```
They need neither the machine nor its template. They go when the machine is stopped, or its time is over. One that ended
in another way can be brought back as long as it is told of (machine/ended.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.host.folders import list_folder
from vmfork.machine.ended import STOPPED, read_reason
from vmfork.machine.folder import find_record, folder_of, is_vm_id, was_replaced
from vmfork.machine.lifetime import IDLE_OVER, TTL_OVER
from vmfork.store import TemplateStore

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.config import Places

_FOR_GOOD = (STOPPED, TTL_OVER, IDLE_OVER)


def store_of(vm_id: str, places: Places) -> TemplateStore:
    """The store of that machine, which need not be there."""
    return TemplateStore(places.checkpoints / vm_id)


def remove_checkpoints(vm_id: str, *, places: Places) -> None:
    """Nothing is kept of the machine, but what another process works on."""
    store_of(vm_id, places).clear()


def find_waste(places: Places) -> list[Path]:
    """The stores of machines that will not come back."""
    return [path for path in _list_stores(places) if not _may_come_back(path.name, places.vms)]


def sweep(places: Places) -> None:
    """What is kept of machines that will not come back is gone, and what killed processes left of others."""
    for path in find_waste(places):
        remove_checkpoints(path.name, places=places)
    for path in _list_stores(places):
        TemplateStore(path).sweep()


def _list_stores(places: Places) -> list[Path]:
    return [path for path in list_folder(places.checkpoints) if is_vm_id(path.name)]


def _may_come_back(vm_id: str, vms: Path) -> bool:
    living = vms / vm_id
    if living.exists():
        return True
    grave = folder_of(vms, vm_id)
    record = find_record(grave)
    if record is not None and (read_reason(grave) not in _FOR_GOOD or was_replaced(grave, record.process)):
        return True
    return living.exists()  # brought back between the two looks
