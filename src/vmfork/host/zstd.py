"""What zstd made smaller, as it was before, through the host's libzstd: Python has a reader of its own from 3.14 on."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Protocol

from vmfork.errors import HostError

_PIECE_SIZE = 131_072


class _Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


class ZstdError(Exception):
    """It is not what zstd made, or not all of it."""


class _In(ctypes.Structure):
    _fields_ = (("src", ctypes.c_char_p), ("size", ctypes.c_size_t), ("pos", ctypes.c_size_t))


class _Out(ctypes.Structure):
    _fields_ = (("dst", ctypes.c_void_p), ("size", ctypes.c_size_t), ("pos", ctypes.c_size_t))


@cache
def _load() -> ctypes.CDLL:
    try:
        # The interface of version 1 is stable since 2016 (zstd.h, "Streaming decompression").
        library = ctypes.CDLL("libzstd.so.1")
    except OSError as error:
        raise HostError("the library libzstd was not found", hint="install it: apt-get install libzstd1") from error
    library.ZSTD_createDStream.restype = ctypes.c_void_p
    library.ZSTD_freeDStream.argtypes = (ctypes.c_void_p,)
    library.ZSTD_decompressStream.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Out), ctypes.POINTER(_In))
    library.ZSTD_decompressStream.restype = ctypes.c_size_t
    library.ZSTD_isError.argtypes = (ctypes.c_size_t,)
    library.ZSTD_getErrorName.argtypes = (ctypes.c_size_t,)
    library.ZSTD_getErrorName.restype = ctypes.c_char_p
    return library


class ZstdFile:
    """Reads frames, one behind the other. A frame that wants a window of more than 128 MiB is refused by the library.

    Raises `ZstdError` for what is no frame, or ends before its end. The library's memory goes with the object.
    """

    def __init__(self, source: _Source) -> None:
        self._library = _load()
        self._source = source
        self._stream = self._library.ZSTD_createDStream()
        if not self._stream:
            raise MemoryError
        self._in = _In(b"", 0, 0)
        self._is_within = False

    def __del__(self) -> None:
        if getattr(self, "_stream", None):
            self._library.ZSTD_freeDStream(self._stream)

    def read(self, size: int, /) -> bytes:
        """1 to `size` bytes, none at the end."""
        room = ctypes.create_string_buffer(min(size, _PIECE_SIZE))
        out = _Out(ctypes.cast(room, ctypes.c_void_p), len(room), 0)
        while out.pos == 0 and size > 0:
            # What the library holds back comes without more of the source.
            if self._in.pos == self._in.size and not self._refill() and not self._is_within:
                break
            self._decompress(out)
        return room.raw[: out.pos]

    def _refill(self) -> bool:
        data = self._source.read(_PIECE_SIZE)
        self._in = _In(data, len(data), 0)
        return bool(data)

    def _decompress(self, out: _Out) -> None:
        had_some = self._in.pos < self._in.size
        left = self._library.ZSTD_decompressStream(self._stream, ctypes.byref(out), ctypes.byref(self._in))
        if self._library.ZSTD_isError(left):
            raise ZstdError(self._library.ZSTD_getErrorName(left).decode())
        self._is_within = left != 0
        if self._is_within and not had_some and out.pos == 0:
            raise ZstdError("it ends before its end")
