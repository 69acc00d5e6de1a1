"""Templates on disk: layout, manifest, locks, sweep. Knows nothing of running machines."""

from vmfork.store.manifest import Manifest
from vmfork.store.store import OpenTemplate, Staging, TemplateStore

__all__ = ["Manifest", "OpenTemplate", "Staging", "TemplateStore"]
