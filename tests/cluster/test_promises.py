"""What every cluster keeps, over nodes of Ray."""

from __future__ import annotations

import pytest

from tests.cluster.conftest import NAME
from tests.cluster.promises import PROMISES, the_disk_of_a_template_goes_with_it
from vmfork.aio import Template

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.needs("ray"), pytest.mark.limit_s(900)]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
async def test_a_cluster_of_ray_keeps(promise, cluster, tmp_path) -> None:
    await promise(cluster, NAME, tmp_path)


async def test_the_disk_of_a_template_goes_with_it(cluster, nodes) -> None:
    first, *_, last = nodes.names
    try:
        await the_disk_of_a_template_goes_with_it(cluster, NAME, nodes.places[first], last)
    finally:
        for node in (first, last):
            if "with-disk" in await Template.list(places=nodes.places[node]):
                await (await Template.open("with-disk", places=nodes.places[node])).remove()
