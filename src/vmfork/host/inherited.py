"""Sockets that a child made by os.fork(2) closes at once: it would keep a port open behind its parent."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

_ours: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def close_in_children(sock: socket.socket) -> socket.socket:
    """`sock`, of which no child of this process keeps a copy. Programs that are executed have none anyway (PEP 446)."""
    _ours.add(sock)
    return sock


def _close_all() -> None:
    for sock in tuple(_ours):
        sock.close()
    _ours.clear()


os.register_at_fork(after_in_child=_close_all)
