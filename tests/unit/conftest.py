"""What tests without machines share."""

from __future__ import annotations

import os

import pytest

from tests.sanitized import Objects


@pytest.fixture(scope="session")
def objects(tmp_path_factory) -> Objects:
    """The folder of a parallel run's processes is below that of the run."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "sanitized"
    folder.mkdir(exist_ok=True)
    return Objects(folder)
