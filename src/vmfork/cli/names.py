"""The names of the templates and images that are kept here, for completion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.config import find_places
from vmfork.image import ImageStore
from vmfork.machine.folder import list_records, read_brokered
from vmfork.store import TemplateStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def _list_templates() -> Sequence[str]:
    return TemplateStore(find_places().templates).list_names()


def _list_images() -> Sequence[str]:
    return [image.name for image in ImageStore(find_places().images).list_images()]


def _list_vms() -> Sequence[str]:
    return [record.id for record in list_records(find_places().vms) if not record.owner_pid]


def _list_shared() -> Sequence[str]:
    vms = find_places().vms
    records = [record for record in list_records(vms) if read_brokered(vms / record.id) is not None]
    return [name for record in records for name in (record.name, record.id) if name]


LISTS: Mapping[str, Callable[[], Sequence[str]]] = {
    "templates": _list_templates,
    "images": _list_images,
    "vms": _list_vms,
    "shared": _list_shared,
}
