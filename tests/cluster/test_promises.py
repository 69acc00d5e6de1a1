"""What every cluster keeps, over nodes of Ray."""

from __future__ import annotations

import pytest

from tests.cluster.conftest import NAME
from tests.cluster.promises import PROMISES

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.needs("ray"), pytest.mark.limit_s(900)]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
async def test_a_cluster_of_ray_keeps(promise, cluster, tmp_path) -> None:
    await promise(cluster, NAME, tmp_path)
