"""What was done to a machine before it was frozen has a name: another for another recipe."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.store import Manifest

NAME_SIZE = 16


def name_recipe(warm_up: Sequence[str], ready: str) -> str:
    """Names what was done to a machine: another for another warm-up or ready check, empty where there was neither."""
    if not (warm_up or ready):
        return ""
    return hashlib.sha256(json.dumps([[*warm_up], ready]).encode()).hexdigest()[:NAME_SIZE]


def name_done(manifest: Manifest) -> str:
    """The name of the recipe that a template was made by; empty where nothing was done."""
    return manifest.recipe or name_recipe(manifest.warm_up, manifest.ready)
