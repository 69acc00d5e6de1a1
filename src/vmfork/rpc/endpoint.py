"""Which process listens at a cache server's socket, and whether it may be trusted: checked before it is asked."""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.config.endpoint import find_endpoint
from vmfork.errors import HostError
from vmfork.host.folders import find_untrusted
from vmfork.host.sockets import Peer

if TYPE_CHECKING:
    from vmfork.config import FactoryConfig, Places


def find_server(endpoint: Path) -> int | None:
    """The pid of the process that listens at `endpoint`, or `None` when no process does.

    Raises `HostError` when the socket cannot be reached.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(endpoint))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return None
        except OSError as error:
            raise HostError(f"the VM cache server at {endpoint} cannot be reached: {error.strerror}") from error
        return Peer.of(probe).pid


def use_server(config: FactoryConfig, places: Places) -> FactoryConfig:
    """`config`, asking the server that keeps its pool, where one listens: a second pool would hold the same again.

    Raises `HostError` when the server's socket cannot be reached.
    """
    if config.cache == 0 or find_server(find_endpoint(config.endpoint, places)) is None:
        return config
    return replace(config, remote=True, cache=0, cache_min=None)


def check_socket(endpoint: Path) -> None:
    """Raises `HostError`, saying why, when there is no socket at `endpoint` that we may use and may trust."""
    try:
        info = endpoint.stat()
    except FileNotFoundError:
        raise HostError(f"no VM cache server is at {endpoint}", hint="start one: vmfork factory init") from None
    except OSError as error:
        raise HostError(f"the VM cache server at {endpoint} cannot be reached: {error.strerror}") from error
    if not stat.S_ISSOCK(info.st_mode):
        raise HostError(f"{endpoint} is not a socket", hint="name the server's socket: [factory] endpoint")
    if info.st_uid != os.getuid():
        # Nor does root use it: whoever serves decides what process a machine's handle names.
        raise HostError(
            f"the VM cache server at {endpoint} is that of user {info.st_uid}, and machines come from one's own only",
            hint="run as that user, or start a server of your own: vmfork factory init",
        )
    untrusted = find_untrusted(Path(os.path.realpath(endpoint)))
    if untrusted is not None:
        raise HostError(
            f"others may write to the folder {untrusted}, and put another server at {endpoint}",
            hint=f"chmod go-w {untrusted}, or name a socket in a folder of your own: [factory] endpoint",
        )
