"""What tests of the host's own things start from and must leave."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def log():
    """Descriptors of a pipe: what the child writes to the second is read from the first."""
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)
