"""What tests of the host's own things start from and must leave."""

from __future__ import annotations

import os

import pytest

from tests.unit.host.probe import open_descriptors


@pytest.fixture
def nothing_left():
    """No descriptor is left, and no child that was not reaped."""
    before = open_descriptors()
    yield
    assert open_descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def log():
    """Descriptors of a pipe: what the child writes to the second is read from the first."""
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)
