"""How long a counter in another process's memory stood still: run as a program, which says so when its input ends.

`standstill.py MEMORY ADDRESS`: MEMORY is an open /proc/PID/mem, and at ADDRESS are two numbers of 64 bits that grow: a
count, and bytes that were written. It says how long the count stood still at most, in seconds, and how fast the bytes
grew, a second. It is a process of its own: an event loop beside it would be what is measured.
"""

from __future__ import annotations

import os
import select
import struct
import sys
import time

_PAIR = struct.Struct("QQ")
# The processor is the machine's meanwhile.
_LOOK_EVERY_S = 30e-6


def watch(memory_fd: int, address: int) -> tuple[float, float]:
    """What the program says, once standard input has ended."""
    begun = moved = time.perf_counter()
    count, first = _PAIR.unpack(os.pread(memory_fd, _PAIR.size, address))
    longest = 0.0
    while not select.select([sys.stdin], [], [], _LOOK_EVERY_S)[0]:
        now_count, written = _PAIR.unpack(os.pread(memory_fd, _PAIR.size, address))
        now = time.perf_counter()
        if now_count != count:
            longest, count, moved = max(longest, now - moved), now_count, now
    return longest, (written - first) / (time.perf_counter() - begun)


if __name__ == "__main__":
    sys.stdout.write(" ".join(map(str, watch(*map(int, sys.argv[1:])))))
