"""Templates: what joins a machine and the store. Build, open, fork, remove."""

from vmfork.template.template import Template

__all__ = ["Template"]
