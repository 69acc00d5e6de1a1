"""What a machine keeps to go back to is found by its name."""

from __future__ import annotations

import pytest

from tests.unit.machine.test_ended import leave, vms  # noqa: F401 - a fixture
from tests.unit.template.test_checkpoints import keep  # noqa: F401 - a fixture
from vmfork.config import find_places
from vmfork.errors import ConfigError
from vmfork.machine.folder import find_record
from vmfork.template.point import find_point, list_points


def test_they_are_found_by_name_and_the_last_without_one(vms, keep) -> None:  # noqa: F811
    vm_id = leave(vms)
    for number, name in enumerate(("1", "good", "2")):
        keep(vm_id, name, created_at=f"2026-01-01T00:00:0{number}+00:00")
    facts = find_record(vms / vm_id).facts
    assert [point.name for point in list_points(vm_id, facts, places=find_places())] == ["1", "good", "2"]
    assert find_point(vm_id, facts, "", places=find_places()).name == "2"
    assert find_point(vm_id, facts, "good", places=find_places()).pause_s == 0.002
    with pytest.raises(ConfigError, match="no checkpoint 'other'") as raised:
        find_point(vm_id, facts, "other", places=find_places())
    assert raised.value.hint == "it has: 1, good, 2"
    with pytest.raises(ConfigError, match="is a checkpoint of"):
        find_point(vm_id, facts, "1", places=find_places()).check("0" * 12)
