"""The names of the templates, images and machines that are here, for completion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.config import find_places
from vmfork.image import ImageStore
from vmfork.machine.folder import has_broker, list_records
from vmfork.store import TemplateStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmfork.machine.folder import VMRecord


def _list_templates() -> Sequence[str]:
    return TemplateStore(find_places().templates).list_names()


def _list_images() -> Sequence[str]:
    return [image.name for image in ImageStore(find_places().images).list_images()]


def _list_vms(is_meant: Callable[[VMRecord], bool]) -> Sequence[str]:
    records = [record for record in list_records(find_places().vms) if is_meant(record)]
    return [name for record in records for name in (record.name, record.id) if name]


def _waits(record: VMRecord) -> bool:
    return not record.owner_pid


def _is_shared(record: VMRecord) -> bool:
    return has_broker(find_places().vms / record.id)


LISTS: Mapping[str, Callable[[], Sequence[str]]] = {
    "templates": _list_templates,
    "images": _list_images,
    "waiting": lambda: _list_vms(_waits),
    "shared": lambda: _list_vms(_is_shared),
    "free": lambda: _list_vms(lambda record: _waits(record) or _is_shared(record)),
    "living": lambda: _list_vms(lambda _: True),
}
