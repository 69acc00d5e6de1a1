"""What a recipe says of the machine that is booted: fields of `VMConfig`, sizes, and what its image is made of.

```
memory = "512M"                    a size, beside the field that it is: memory_mib; so are max_memory and disk
cpus = 2                           any field of VMConfig; one in _mib may be a size, one in _s a duration
from = "registry.example/app:1"    in the place of image: a container image, which is imported. In Python from_
```
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from vmfork.config import ImageConfig, VMConfig
from vmfork.config.loader import name_unknown
from vmfork.config.source import absolute_source
from vmfork.errors import ConfigError
from vmfork.late import import_late
from vmfork.units import parse_duration_s, parse_size_mib

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FIELDS = tuple(field.name for field in fields(VMConfig))
# Sizes as people write them, beside the fields that they are.
SIZES = {"memory": "memory_mib", "max_memory": "max_memory_mib", "disk": "disk_mib"}


def read_fields(vm: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the machine, of `vm`, which has no others, and of what is said beside it: fields, and sizes.

    A size of `None` is not said. Raises `ConfigError` for what is said twice, and for a value that no machine can have.
    """
    for key in vm:
        if key not in FIELDS:
            raise name_unknown(f"vm.{key}", "a recipe has it", "fields of a machine", FIELDS)
    found = {key: _read_value(key, value) for key, value in vm.items()}
    sizes = {key: value for key, value in said.items() if key in SIZES and value is not None}
    for key, value in ({key: value for key, value in said.items() if key not in SIZES} | sizes).items():
        name = SIZES.get(key, key)
        if name in found:
            other = name if name in said and name != key else "vm"
            raise ConfigError(key, value, f"{other} says it too", hint="give one of the two")
        found[name] = parse_size_mib(value, field=key) if key in SIZES else _read_value(key, value)
    # How far it may grow depends on the size that it has, which may be said elsewhere.
    VMConfig(**{key: value for key, value in found.items() if key != "max_memory_mib" or "memory_mib" in found})
    return found


def _read_value(field: str, value: Any) -> Any:
    if field.endswith("_mib") and value is not None:
        return parse_size_mib(value, field=field)
    return parse_duration_s(value, field=field) if field.endswith("_s") and isinstance(value, str) else value


def read_base(source: Any, folder: Path, vm: Mapping[str, Any], *, field: str) -> tuple[ImageConfig, dict[str, Any]]:
    """What the image of a recipe with `from` is made of, and the machine's fields, of which one names that image.

    Paths are from `folder` on. Raises `ConfigError`, naming `field`, for a source that is none, and beside an image.
    """
    if not isinstance(source, str) or not source.strip():
        raise ConfigError(field, source, "must be text that says where a container image is")
    if "image" in vm:
        reason = f"a recipe has one image: image names it, or {field} says what it is made of"
        raise ConfigError(field, source, reason, hint="give one of the two")
    absolute = absolute_source(source, folder)
    try:
        name: str = import_late("vmfork.container.kept", "name_source")(absolute)
    except ConfigError as error:
        raise ConfigError(field, source, error.reason, hint=error.hint) from None
    return ImageConfig(source=absolute), {**vm, "image": name}
