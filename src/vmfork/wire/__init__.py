"""The agent protocol of `docs/reference/wire.md` without input or output: bytes to values and back."""

from vmfork.wire.frame import FIRST_WITH_NOTIFY, PROTOCOL, SUPPORTED_PROTOCOLS, Channel
from vmfork.wire.message import ClockReading, DirEntry, ErrorCode, ExecStatus, FileStat, Hello, ItemOutcome

__all__ = [
    "FIRST_WITH_NOTIFY",
    "PROTOCOL",
    "SUPPORTED_PROTOCOLS",
    "Channel",
    "ClockReading",
    "DirEntry",
    "ErrorCode",
    "ExecStatus",
    "FileStat",
    "Hello",
    "ItemOutcome",
]
