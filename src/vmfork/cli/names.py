"""The names of the templates, images and machines that are here, for completion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.config import find_places
from vmfork.image import ImageStore
from vmfork.machine.folder import has_broker, list_ended, list_records
from vmfork.machine.naming import choose
from vmfork.store import TemplateStore
from vmfork.template.checkpoints import store_of
from vmfork.template.removal import list_persisted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmfork.machine.folder import VMRecord


def _list_templates() -> Sequence[str]:
    places = find_places()
    return sorted({*TemplateStore(places.templates).list_names(), *list_persisted(places)})


def _list_images() -> Sequence[str]:
    return [image.name for image in ImageStore(find_places().images).list_images()]


def _list_vms(is_meant: Callable[[VMRecord], bool]) -> Sequence[str]:
    records = [record for record in list_records(find_places().vms) if is_meant(record)]
    return [name for record in records for name in (record.name, record.id) if name]


def _waits(record: VMRecord) -> bool:
    return not record.owner_pid


def _is_shared(record: VMRecord) -> bool:
    return has_broker(find_places().vms / record.id)


def _list_returning() -> Sequence[str]:
    ended = [record for record, _ in list_ended(find_places().vms)]
    return [*_list_vms(_is_shared), *(name for record in ended for name in (record.name, record.id) if name)]


def _list_checkpoints(vm: str) -> Sequence[str]:
    """Those that last, of the machine that `vm` names, which runs or ended not long ago."""
    places = find_places()
    ended = [record for record, _ in list_ended(places.vms)][::-1]
    record = choose([*list_records(places.vms), *ended], vm)
    return store_of(record.id, places).list_names()


LISTS: Mapping[str, Callable[..., Sequence[str]]] = {
    "templates": _list_templates,
    "images": _list_images,
    "waiting": lambda: _list_vms(_waits),
    "shared": lambda: _list_vms(_is_shared),
    "returning": _list_returning,
    "checkpoints": _list_checkpoints,
    "free": lambda: _list_vms(lambda record: _waits(record) or _is_shared(record)),
    "living": lambda: _list_vms(lambda _: True),
}
