"""Arguments over environment over file over defaults, each with its origin; what is unknown is refused."""

from __future__ import annotations

import pytest

from vmfork.config.loader import load_settings
from vmfork.errors import ConfigError


def write(tmp_path, text):
    path = tmp_path / "vmfork.toml"
    path.write_text(text)
    return path


def test_each_source_is_over_the_one_before(tmp_path):
    path = write(tmp_path, '[vm]\ncpus = 2\nmemory_mib = "1G"\naccel = "tcg"\nfork_timeout_s = "2m"\n')
    got = load_settings(path, {"VMFORK_VM_CPUS": "3", "VMFORK_VM_MEMORY_MIB": "512M"}, {"vm.cpus": 4, "vm.image": None})
    assert (got.vm.cpus, got.vm.memory_mib, got.vm.accel, got.vm.fork_timeout_s) == (4, 512, "tcg", 120.0)
    assert got.origins["vm.cpus"] == "argument"
    assert got.origins["vm.memory_mib"] == "VMFORK_VM_MEMORY_MIB"
    assert got.origins["vm.accel"] == str(path)
    assert got.origins["vm.image"] == "default"
    assert got.factory.vm == got.vm


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[vm]\ncpu = 2\n", "vm.cpu"),
        ("[net]\n", "net"),
        ("vm = 3\n", "vm"),
        ("[vm]\ncpus = '2'\n", "vm.cpus"),
        ("[image]\npackages = 'jq'\n", "image.packages"),
        ("[vm\n", "config"),
    ],
)
def test_a_wrong_file_is_refused_by_field(tmp_path, text, field):
    with pytest.raises(ConfigError) as caught:
        load_settings(write(tmp_path, text), {})
    assert caught.value.field == field


@pytest.mark.parametrize("environ", [{"VMFORK_VM_CPU": "1"}, {"VMFORK_VM_CPUS": "x"}, {"VMFORK_FACTORY_TEMPLATE": "x"}])
def test_a_wrong_variable_is_refused(tmp_path, environ):
    with pytest.raises(ConfigError):
        load_settings(write(tmp_path, ""), environ)


def test_a_demanded_file_must_exist(tmp_path):
    with pytest.raises(ConfigError):
        load_settings(tmp_path / "none", {})
