"""What an image is called that was derived from another: by what it is made of, and by the content of that other."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmfork.image.record import Image

_DIGITS = 12
# Room for the name of the base image in that of the derived one (`check_name`).
_MOST_OF_BASE = 33


def name_derived(base: Image, packages: Iterable[str]) -> str:
    """`BASE.with-PACKAGES-CONTENT`: the same for the same packages over the same image, whatever their order."""
    return f"{name_packages(base, packages)}{_name_content(base)}"


def name_packages(base: Image, packages: Iterable[str]) -> str:
    """What all names begin with that those packages over an image of that name have had."""
    inputs = [base.suite, sorted({*base.requested, *packages}), base.bare, base.root]
    return f"{base.name[:_MOST_OF_BASE]}.with-{hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:_DIGITS]}-"


def is_derived(name: str, base: Image) -> bool:
    """Whether the image of that name was derived from `base` as it is now, and not from a former one of its name."""
    return name.endswith(f"-{_name_content(base)}")


def _name_content(base: Image) -> str:
    return base.digest[:_DIGITS]
