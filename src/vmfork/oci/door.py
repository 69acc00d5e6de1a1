"""The door to registries: what speaks to them is an extra, and is loaded when it is first used."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError, HostError
from vmfork.late import import_late
from vmfork.oci.reference import Reference

if TYPE_CHECKING:
    from vmfork.oci.registry import Repository

# The extra `oci`: what is asked for, and what is installed for it.
_NEEDED = ("oras", "requests")


def check_extra() -> None:
    """Raises `HostError` where the extra is missing."""
    missing = [package for package in _NEEDED if find_spec(package) is None]
    if missing:
        raise HostError(
            f"registries need {', '.join(missing)}",
            hint="install vmfork with its extra: pip install 'vmfork[oci]'; or save to a file, and use skopeo",
        )


def open_repository(reference: Reference, *, plain_http: bool) -> Repository:
    """The repository that `reference` is in; the caller closes it. Raises `HostError` where the extra is missing."""
    check_extra()
    repository: Repository = import_late("vmfork.oci.registry", "Repository")(reference, plain_http=plain_http)
    return repository


def parse_target(ref: str) -> Reference:
    """Where something is pushed to. Raises `ConfigError` for what names no tag of a registry."""
    reference = Reference.parse(ref)
    if reference.is_digest:
        raise ConfigError("ref", ref, "what is pushed has the digest that it has", hint="give a tag: HOST/NAME:TAG")
    return reference
