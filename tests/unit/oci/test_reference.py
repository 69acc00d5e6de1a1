"""Docker Hub's names are read as Docker reads them; what may be one is told by its whole name."""

from __future__ import annotations

import pytest

from vmfork.container.origin import Origin
from vmfork.errors import ConfigError
from vmfork.oci.reference import Reference

DIGEST = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("text", "repository", "told"),
    [
        ("docker.io/python:3.11-slim", "library/python", "docker.io/library/python:3.11-slim"),
        ("docker.io/library/python:3.11", "library/python", "docker.io/library/python:3.11"),
        ("docker.io/team/app", "team/app", "docker.io/team/app:latest"),
        ("docker.io/team/app/part:1", "team/app/part", "docker.io/team/app/part:1"),
        ("index.docker.io/python", "library/python", "docker.io/library/python:latest"),
        (f"docker.io/python@{DIGEST}", "library/python", f"docker.io/library/python@{DIGEST}"),
    ],
)
def test_names_of_docker_hub_lead_to_its_server(text, repository, told) -> None:
    reference = Reference.parse(text)
    assert (reference.server, reference.repository, str(reference)) == ("registry-1.docker.io", repository, told)
    assert not reference.is_local
    assert Reference.parse(str(reference)) == reference
    assert reference.at("2").server == "registry-1.docker.io"


@pytest.mark.parametrize("host", ["localhost", "LocalHost:5000", "127.0.0.1:5000"])
def test_a_registry_of_this_very_host_is_known_by_any_of_its_names(host) -> None:
    assert Reference.parse(f"{host}/python").is_local
    assert not Reference.parse(f"{host.partition(':')[0]}.example:5000/python").is_local


@pytest.mark.parametrize("text", ["registry.example/python", "registry-1.docker.io/library/python", "localhost/python"])
def test_other_hosts_are_asked_themselves_for_what_was_written(text) -> None:
    reference = Reference.parse(text)
    assert f"{reference.server}/{reference.repository}" == text


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("python", "docker.io/library/python:latest"),
        ("python:3.11-slim", "docker.io/library/python:3.11-slim"),
        ("team/app:1", "docker.io/team/app:1"),
        (f"python@{DIGEST}", f"docker.io/library/python@{DIGEST}"),
    ],
)
def test_a_name_without_a_host_is_refused_with_the_whole_name(text, meant) -> None:
    with pytest.raises(ConfigError) as error:
        Reference.parse(text)
    assert error.value.hint.endswith(f"on Docker Hub it is {meant}")
    with pytest.raises(ConfigError) as error:
        Origin.parse(text)
    assert meant in error.value.hint
    assert "oci:FOLDER" in error.value.hint


@pytest.mark.parametrize("text", ["", "./app", "/tmp/app", "App", "a b", "http://registry.example/app", "app:", "../x"])
def test_what_is_no_name_there_either_is_not_led_there(text) -> None:
    with pytest.raises(ConfigError) as error:
        Reference.parse(text)
    assert "docker.io" not in error.value.hint


def test_beside_a_digest_a_tag_says_nothing() -> None:
    reference = Reference.parse(f"registry.example/team/app:1.2@{DIGEST}")
    assert reference == Reference.parse(f"registry.example/team/app@{DIGEST}")
    for text in (f"registry.example/app:@{DIGEST}", f"registry.example/app:a b@{DIGEST}", "registry.example/app:1@x"):
        with pytest.raises(ConfigError):
            Reference.parse(text)


@pytest.mark.parametrize("port", ["0", "65536", "99999"])
def test_a_port_that_is_none_is_refused(port) -> None:
    with pytest.raises(ConfigError, match="no port of a registry"):
        Reference.parse(f"127.0.0.1:{port}/team/app:1")


def test_a_scheme_is_left_out() -> None:
    with pytest.raises(ConfigError) as error:
        Reference.parse("docker://registry.example/app:1")
    assert error.value.hint.endswith("without docker:// before it")
