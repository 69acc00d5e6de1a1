"""The certificates that Java trusts, as ca-certificates-java writes them: a keystore with the time of each entry.

```
u32 0xFEEDFEED  u32 version  u32 count   all big-endian; text and body have a length before them (u16, u32)
entry:  u32 2 (a certificate)   text alias   u64 time in ms since 1970   text type   body
SHA-1 of the password as UTF-16, a phrase, and all of the above
```
(OpenJDK: sun/security/provider/JavaKeyStore.java)
"""

from __future__ import annotations

import hashlib
import struct

PATH = "etc/ssl/certs/java/cacerts"

_MAGIC = 0xFEEDFEED
_CERTIFICATE = 2
_DIGEST_BYTES = 20
# The password that Java's own tools take for this file, which keeps no secret.
_SALT = "changeit".encode("utf-16-be") + b"Mighty Aphrodite"


def set_times(store: bytes, time_s: int) -> bytes:
    """The same keystore, all entries made at that time. Anything but a keystore of certificates is left as it is."""
    body, digest = bytearray(store[:-_DIGEST_BYTES]), store[-_DIGEST_BYTES:]
    if hashlib.sha1(_SALT + body, usedforsecurity=False).digest() != digest:
        return store
    magic, _, count = struct.unpack_from(">III", body)
    at = 12
    for _ in range(count if magic == _MAGIC else 0):
        (kind,) = struct.unpack_from(">I", body, at)
        if kind != _CERTIFICATE:
            return store
        at = _skip(body, at + 4, ">H")
        struct.pack_into(">Q", body, at, time_s * 1000)
        at = _skip(body, _skip(body, at + 8, ">H"), ">I")
    return bytes(body) + hashlib.sha1(_SALT + body, usedforsecurity=False).digest()


def _skip(body: bytearray, at: int, length: str) -> int:
    return at + struct.calcsize(length) + int(struct.unpack_from(length, body, at)[0])
