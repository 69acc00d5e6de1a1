"""The packages of the extra `server`: imported when a server or its client is used, and not before."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from vmfork.errors import HostError

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.rpc.client import CacheClient

_NEEDED = {
    "grpc": "grpcio",
    "google.protobuf": "protobuf",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "prometheus_client": "prometheus_client",
}


def open_client(endpoint: Path) -> CacheClient:
    """A client of the cache server at `endpoint`, which was not asked anything yet. Raises as `check_packages` does."""
    check_packages()
    from vmfork.rpc.client import CacheClient  # noqa: PLC0415 - gRPC takes 60 ms to load

    return CacheClient(endpoint)


def check_packages() -> None:
    """Raises `HostError` when a package is missing that the cache server and its client need, naming it."""
    missing = [package for module, package in _NEEDED.items() if not _is_there(module)]
    if missing:
        raise HostError(
            f"the VM cache server and its client need {', '.join(missing)}",
            hint="install vmfork with its extra: pip install 'vmfork[server]'",
        )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a dotted name whose first part is missing
        return False
