"""The certificates Java trusts: the times of the entries, and what seals them."""

from __future__ import annotations

import hashlib
import struct

from vmfork.image import keystore


def make_store(*times_ms: int) -> bytes:
    body = struct.pack(">III", 0xFEEDFEED, 2, len(times_ms))
    for number, time in enumerate(times_ms):
        alias = f"debian:{number}.pem".encode()
        body += struct.pack(">IH", 2, len(alias)) + alias + struct.pack(">Q", time)
        body += struct.pack(">H", 5) + b"X.509" + struct.pack(">I", 3) + b"der"
    return body + seal(body)


def seal(body: bytes) -> bytes:
    return hashlib.sha1("changeit".encode("utf-16-be") + b"Mighty Aphrodite" + body).digest()


def test_two_stores_made_at_different_times_are_the_same():
    first, second = make_store(1, 22), make_store(333, 4444)
    assert keystore.set_times(first, 7) == keystore.set_times(second, 7) == make_store(7000, 7000)


def test_what_is_no_such_keystore_is_left_as_it_is():
    for store in (b"", b"x" * 100, make_store(1)[:-1], make_store(1) + b"x"):
        assert keystore.set_times(store, 7) == store
