"""The agent protocol without I/O: bytes to messages and back (docs/reference/wire.md)."""


from vmfork.wire.message import (
    PROTOCOL,
    SUPPORTED_PROTOCOLS,
    ClockReading,
    DirEntry,
    ExecStatus,
    FileStat,
    Hello,
    ItemOutcome,
)

__all__ = [
    "PROTOCOL",
    "SUPPORTED_PROTOCOLS",
    "ClockReading",
    "DirEntry",
    "ExecStatus",
    "FileStat",
    "Hello",
    "ItemOutcome",
]
