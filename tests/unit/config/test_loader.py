"""Arguments over environment over file over defaults, each with its origin; what is unknown is refused."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmfork.config import ImageConfig, Limits, loader
from vmfork.config.loader import SECTIONS, load_settings
from vmfork.config.source import absolute_source
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


def test_a_pool_may_be_given_as_a_least_and_a_most(tmp_path):
    path = write(tmp_path, "[factory]\ncache = {min = 1, max = 8}\n")
    got = load_settings(path, {})
    assert (got.factory.cache_min, got.factory.cache) == (1, 8)
    assert got.origins["factory.cache_min"] == got.origins["factory.cache"] == str(path)
    assert load_settings(path, {"VMFORK_FACTORY_CACHE_MIN": "2"}).factory.cache_min == 2
    assert load_settings(write(tmp_path, "[factory]\ncache = 3\n"), {}).factory.cache_min is None


def test_what_of_the_host_machines_may_have_is_read_from_both(tmp_path):
    path = write(
        tmp_path, "[vm]\novercommit = 2\nreserve_mib = '1G'\nwait_s = '1m'\nlayers_mib = '2G'\nlayers_disk_mib = '1G'\n"
    )
    got = load_settings(path, {"VMFORK_VM_MAX_PRESSURE": "25.5", "VMFORK_VM_WAIT_S": "90s"})
    assert got.vm.limits == Limits(overcommit=2, reserve_mib=1024, max_pressure=25.5, wait_s=90.0)
    assert (got.vm.layers_mib, got.vm.layers_disk_mib) == (2048, 1024)
    assert load_settings(path, {"VMFORK_VM_OVERCOMMIT": "0"}).vm.limits.overcommit == 0
    assert load_settings(path, {"VMFORK_VM_LAYERS_MIB": "0"}).vm.layers_mib == 0
    assert got.vm.is_plain  # it asks for no other machine


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("overcommit", "0.5"),
        ("overcommit", "much"),
        ("overcommit", "nan"),
        ("reserve_mib", "-1"),
        ("layers_mib", "-1"),
        ("layers_disk_mib", "-1"),
        ("max_pressure", "101"),
        ("wait_s", "-1s"),
    ],
)
def test_what_no_host_can_give_is_refused(field, value):
    with pytest.raises(ConfigError) as caught:
        load_settings(None, {f"VMFORK_VM_{field.upper()}": value})
    assert caught.value.field == f"vm.{field}"


@pytest.mark.parametrize(
    "value", ["{min = 1}", "{min = 9, max = 8}", "{min = -1, max = 8}", "{min = 1, max = 8, x = 1}"]
)
def test_a_least_and_a_most_that_are_none_are_refused(tmp_path, value):
    with pytest.raises(ConfigError, match=r"factory\.cache"):
        load_settings(write(tmp_path, f"[factory]\ncache = {value}\n"), {})


@pytest.mark.parametrize("environ", [{"VMFORK_VM_CPU": "1"}, {"VMFORK_VM_CPUS": "x"}, {"VMFORK_FACTORY_TEMPLATE": "x"}])
def test_a_wrong_variable_is_refused(tmp_path, environ):
    with pytest.raises(ConfigError):
        load_settings(write(tmp_path, ""), environ)


def test_a_demanded_file_must_exist(tmp_path):
    with pytest.raises(ConfigError):
        load_settings(tmp_path / "none", {})


def test_a_wrong_value_is_told_with_where_it_came_from(tmp_path):
    path = write(tmp_path, "[vm]\ncpus = 0\n")
    with pytest.raises(ConfigError, match=f"vm.cpus: .* \\(from {path}\\)"):
        load_settings(path, {})
    for environ in (
        {"VMFORK_VM_CPUS": "x"},
        {"VMFORK_FACTORY_TEMPLATE": "perhaps"},
        {"VMFORK_VM_FORK_TIMEOUT_S": "soon"},
    ):
        with pytest.raises(ConfigError, match=f"\\(from {next(iter(environ))}\\)"):
            load_settings(write(tmp_path, ""), environ)
    with pytest.raises(ConfigError) as given:
        load_settings(write(tmp_path, ""), {}, {"vm.cpus": 0})
    assert "from" not in str(given.value)


def test_the_nearest_known_field_is_named(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_settings(write(tmp_path, "[vm]\nmemory_mb = 512\n"), {})
    assert caught.value.hint.startswith("did you mean memory_mib? ")


@pytest.mark.parametrize(
    "variable",
    ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP", "PORT_80_TCP_ADDR",
     "PORT_53_UDP_PROTO", "NAME", "ENV_LANG"],
)  # fmt: skip
def test_what_names_a_service_called_vmfork_factory_is_not_ours(tmp_path, variable):
    """Kubernetes sets such variables in every container, Docker's links in every linked one."""
    environ = {f"VMFORK_FACTORY_{variable}": "tcp://10.0.0.7:80"}
    assert load_settings(write(tmp_path, ""), environ) == load_settings(write(tmp_path, ""), {})


def test_a_working_folder_that_was_removed_has_no_file(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert load_settings(None, {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}).vm.cpus == 1
    monkeypatch.chdir(tmp_path)


FIELDS = [(name, key) for name, keys in SECTIONS.items() for key in keys]
leaves = (
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=12)
    | st.sampled_from(["1G", "30s", "1" * 400 + "G", "9" * 400, "1e999s", "unix:/x", "q35", "tcg", "/x"])
    | st.dates()
    | st.datetimes()
)
toml = st.recursive(
    leaves, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3)
)
given_fields = st.lists(st.tuples(st.sampled_from(FIELDS), toml), max_size=4)


def are_settings_or_refused(load) -> None:
    try:
        told = load().values()
    except ConfigError as error:
        told = error.field and str(error)
    assert told


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(found=given_fields)
def test_whatever_a_file_says_is_taken_or_refused_by_field(tmp_path, found):
    body = {}
    for (section, key), value in found:
        body.setdefault(section, {})[key] = value
    path = write(tmp_path, "")
    with patch.object(loader, "read_toml", lambda _file, *, field: body):
        are_settings_or_refused(lambda: load_settings(path, {}))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(body=st.binary(max_size=60) | st.text(alphabet="[]=\"'{}.,#vmcpus10\n ", max_size=40).map(str.encode))
def test_a_file_of_any_bytes_is_taken_or_refused(tmp_path, body):
    path = tmp_path / "vmfork.toml"
    path.write_bytes(body)
    are_settings_or_refused(lambda: load_settings(path, {}))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(found=st.dictionaries(st.sampled_from(FIELDS), leaves.map(str), max_size=4))
def test_whatever_the_environment_says_is_taken_or_refused_by_field(tmp_path, found):
    environ = {f"VMFORK_{section}_{key}".upper(): text for (section, key), text in found.items()}
    path = write(tmp_path, "")
    are_settings_or_refused(lambda: load_settings(path, environ))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(found=given_fields)
def test_whatever_an_argument_says_is_taken_or_refused_by_field(tmp_path, found):
    path = write(tmp_path, "")
    are_settings_or_refused(lambda: load_settings(path, {}, {".".join(field): value for field, value in found}))


IMAGES = """
[image]
bare = true
[image.app]
from = "oci:layouts/app:1"
[image.tools]
packages = ["git"]
[image.other]
from = "registry.example/team/py:1"
"""


def test_images_of_other_names_are_of_packages_or_of_container_images(tmp_path):
    got = load_settings(write(tmp_path, IMAGES), {})
    assert got.image == ImageConfig(bare=True)
    assert got.images == {
        "app": ImageConfig(source=f"oci:{tmp_path}/layouts/app:1"),
        "tools": ImageConfig(packages=("git",)),
        "other": ImageConfig(source="registry.example/team/py:1"),
    }
    assert load_settings(write(tmp_path, ""), {}).images == {}


@pytest.mark.parametrize(
    ("text", "field", "told"),
    [
        ('[image]\nfrom = "dir:/a"\n', "image.from", "[image.NAME]"),
        ('[image.app]\nfrm = "dir:/a"\n', "image.app.frm", "did you mean from"),
        ("[image.app]\nfrom = 3\n", "image.app.from", "text"),
        ('[image.app]\nfrom = ""\n', "image.app.from", "text"),
        ('[image.app]\nfrom = "dir:/a"\npackages = ["git"]\n', "image.app.packages", "container image"),
        ('[image.app]\nfrom = "dir:/a"\nroot = "dsk"\n', "image.app.root", "no root"),
        ('[image.app]\nsuite = "No"\n', "image.app.suite", "not a Debian release"),
        ('[image."a b"]\nfrom = "dir:/a"\n', "image.a b", "not a name"),
        ('[image]\nsuite = {from = "dir:/a"}\n', "image.suite", "must be a value"),
    ],
)
def test_an_image_that_cannot_be_is_refused_by_its_name(tmp_path, text, field, told):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path, {})
    assert caught.value.field == field
    assert told in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("source", ["dir:root", "oci:root", "docker-archive:root"])
def test_a_path_of_a_source_is_from_its_folder_on(tmp_path, source):
    kind = source.partition(":")[0]
    assert absolute_source(source, tmp_path) == f"{kind}:{tmp_path}/root"
    assert absolute_source(f"{kind}:/root", tmp_path) == f"{kind}:/root"
    assert absolute_source("registry.example/root", tmp_path) == "registry.example/root"
