"""The packages of the extra `server`, imported when a server or its client is used and not before."""

from __future__ import annotations

from importlib.util import find_spec

from vmfork.errors import HostError

_NEEDED = {
    "grpc": "grpcio",
    "google.protobuf": "protobuf",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "prometheus_client": "prometheus_client",
}


def check_packages() -> None:
    """Everything that the cache server and its client need is installed. `HostError` names what is not."""
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
