"""What was decided about connections that a guest asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One connection, or one request over a proxy, that a program of the guest asked for.

    `time_s` is seconds since 1970. `address` is the one that was connected to, or was refused; empty where the name was
    not looked up, or led nowhere. `why` is the entry of the list that allowed it, or what was against it.
    """

    time_s: float
    host: str
    port: int
    address: str
    allowed: bool
    why: str

    def __str__(self) -> str:
        """As a line: what was asked for, what became of it, why."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port} {'allowed' if self.allowed else 'denied'}: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkCounts:
    """How many connections were allowed and denied, and how many are open; bytes to what they lead to, and from it."""

    allowed: int = 0
    denied: int = 0
    open: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
