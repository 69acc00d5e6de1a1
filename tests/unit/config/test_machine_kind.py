"""What a machine kind lacks is refused by name where it is asked for, before anything is started."""

from __future__ import annotations

import pytest

from vmfork.config import VMConfig
from vmfork.config.loader import load_settings
from vmfork.errors import ConfigError


@pytest.mark.parametrize(
    ("asked", "field", "said"),
    [
        ({"machine": "pc"}, "vm.machine", "'pc' is not a machine"),
        ({"machine": None}, "vm.machine", "None is not a machine"),
        ({"machine": "microvm", "max_memory_mib": 512}, "vm.max_memory_mib", "takes no memory while it runs"),
        ({"machine": "microvm", "reseed": "vmgenid"}, "vm.reseed", "has no vmgenid"),
    ],
)
def test_what_it_lacks_is_named(asked, field, said) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        VMConfig(**asked)
    assert refused.value.field == field
    assert refused.value.hint


@pytest.mark.parametrize("asked", [{"max_cpus": 4}, {"max_memory_mib": 256}, {"reseed": "none"}, {"accel": "kvm"}])
def test_the_rest_is_not_refused(asked) -> None:
    assert VMConfig(machine="microvm", **asked).machine == "microvm"


def test_file_and_environment_say_it_too(tmp_path) -> None:
    path = tmp_path / "vmfork.toml"
    path.write_text('[vm]\nmachine = "microvm"\n')
    assert load_settings(path, {}).vm.machine == "microvm"
    assert load_settings(path, {"VMFORK_VM_MACHINE": "q35"}).vm.machine == "q35"
    assert load_settings(None, {"VMFORK_CONFIG": str(path)}, {"vm.machine": "auto"}).vm.machine == "auto"
