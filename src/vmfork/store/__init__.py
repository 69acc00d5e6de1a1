"""Templates on disk: layout, manifest, locks, sweep. Knows nothing of running machines."""

from vmfork.store.manifest import Manifest
from vmfork.store.opened import OpenTemplate
from vmfork.store.staging import Staging
from vmfork.store.store import TemplateStore

__all__ = ["Manifest", "OpenTemplate", "Staging", "TemplateStore"]
