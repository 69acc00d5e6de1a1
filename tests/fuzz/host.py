"""The host's client under atheris: python -m tests.fuzz.host, with the arguments of libFuzzer."""

from __future__ import annotations

import asyncio
import sys

import atheris

with atheris.instrument_imports(include=["vmfork"]):
    from tests.fuzz.client import take

if __name__ == "__main__":
    loop = asyncio.new_event_loop()
    atheris.Setup(sys.argv, lambda data: loop.run_until_complete(take(data)))
    atheris.Fuzz()
