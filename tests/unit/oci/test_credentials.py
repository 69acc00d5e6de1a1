"""Who we are to a registry is found where Docker's command finds it, in real files and by real helpers."""

from __future__ import annotations

import base64
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.children import read_pipe, wait_gone
from vmfork.errors import Closed, HostError
from vmfork.oci import credentials
from vmfork.oci.credentials import find_credentials
from vmfork.oci.keychain import Helpers
from vmfork.oci.reference import Reference

HOST = "registry.example:5000"
HUB = "https://index.docker.io/v1/"


def auth(user: str, password: str = "secret") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture(autouse=True)
def docker(tmp_path, monkeypatch) -> Path:
    """DOCKER_CONFIG's file, which is not there; `~/.docker` is another."""
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    return folder / "config.json"


@pytest.fixture
def at_home(tmp_path) -> Path:
    folder = tmp_path / ".docker"
    folder.mkdir()
    return folder / "config.json"


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """Makes a helper of a line of shell, which has what it was asked for in `$asked`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(name: str, line: str) -> None:
        program = folder / f"docker-credential-{name}"
        program.write_text(f'#!/bin/sh\n[ "$1" = get ] || exit 9\nasked=$(cat)\n{line}\n')
        program.chmod(0o755)

    return make


def answer(user: str, secret: str = "secret") -> str:
    return f"echo '{json.dumps({'Username': user, 'Secret': secret})}'"


def find(text: str = f"{HOST}/team/app:1") -> tuple[str, str] | None:
    helpers = Helpers()
    try:
        return find_credentials(Reference.parse(text), helpers)
    finally:
        helpers.close()


def test_the_folder_that_is_named_stands_in_the_place_of_that_at_home(docker, at_home, monkeypatch) -> None:
    at_home.write_text(json.dumps({"auths": {HOST: auth("home"), "other.example": auth("other")}}))
    assert find() is None
    docker.write_text(json.dumps({"auths": {HOST: auth("named")}}))
    assert find() == ("named", "secret")
    assert find("other.example/app") is None
    monkeypatch.delenv("DOCKER_CONFIG")
    assert find() == ("home", "secret")
    monkeypatch.setenv("DOCKER_CONFIG", "")
    assert find() == ("home", "secret")


def test_nobody_is_known_where_nothing_is_said(docker, monkeypatch) -> None:
    for said in ("{}", '{"auths": null}', f'{{"auths": {{"{HOST}": {{}}}}}}', '{"auths": {"x.example": {"auth": ""}}}'):
        docker.write_text(said)
        assert find() is None
    monkeypatch.setenv("DOCKER_CONFIG", "/dev/null")
    assert find() is None


@pytest.mark.parametrize("key", [HOST, f"https://{HOST}", f"https://{HOST}/v1/", f"http://{HOST}/v2/", f"{HOST}/team"])
def test_a_host_is_known_with_what_old_tools_wrote_around_it(docker, key) -> None:
    docker.write_text(json.dumps({"auths": {"registry.example": auth("port"), key: auth("me", "a:b")}}))
    assert find() == ("me", "a:b")


def test_what_says_the_host_alone_comes_first(docker) -> None:
    docker.write_text(json.dumps({"auths": {f"https://{HOST}/v1/": auth("old"), HOST: auth("new")}}))
    assert find() == ("new", "secret")


def test_localhost_goes_by_both_of_its_names(docker) -> None:
    docker.write_text(json.dumps({"auths": {"localhost:5000": auth("me")}}))
    assert find("127.0.0.1:5000/app") == ("me", "secret")
    assert find("127.0.0.1:5001/app") is None


@pytest.mark.parametrize("key", [HUB, "docker.io", "index.docker.io"])
def test_docker_hub_is_known_by_dockers_key_and_by_that_of_others(docker, key) -> None:
    docker.write_text(json.dumps({"auths": {key: auth("me")}}))
    assert find("docker.io/python:3") == ("me", "secret")
    assert find("registry.example/python:3") is None


def test_a_helper_is_asked_for_docker_hub_by_dockers_key(docker, helper) -> None:
    helper("all", f'[ "$asked" = {HUB} ] && {answer("me")}')
    docker.write_text(json.dumps({"credsStore": "all"}))
    assert find("docker.io/python:3") == ("me", "secret")
    docker.write_text(json.dumps({"credHelpers": {HUB: "all"}}))
    assert find("docker.io/python:3") == ("me", "secret")


def test_the_helper_of_a_host_comes_before_that_of_all_and_both_before_the_file(docker, helper) -> None:
    helper("one", answer("one"))
    helper("all", f'[ "$asked" = {HOST} ] && {answer("all")}')
    said = {"auths": {HOST: auth("file")}, "credsStore": "all", "credHelpers": {HOST: "one"}}
    for left_out, found in ((None, "one"), ("credHelpers", "all"), ("credsStore", "file")):
        said.pop(left_out or "", None)
        docker.write_text(json.dumps(said))
        assert find() == (found, "secret")


def test_what_a_helper_does_not_know_the_file_may(docker, helper) -> None:
    helper("all", "echo credentials not found in native keychain; exit 1")
    docker.write_text(json.dumps({"credsStore": "all"}))
    assert find() is None
    docker.write_text(json.dumps({"credsStore": "all", "auths": {HOST: auth("file")}}))
    assert find() == ("file", "secret")


@pytest.mark.parametrize(
    ("line", "told", "log"),
    [
        ("echo the keys are locked >&2; exit 3", "docker-credential-all failed with 3", "the keys are locked"),
        ("echo no JSON", "answered what is no name and password", ""),
        ("echo '[1]'", "answered what is no name and password", ""),
        ('echo \'{"Username": 1, "Secret": ""}\'', "answered what is no name and password", ""),
        (answer("<token>"), "identity token", ""),
    ],
)
def test_a_helper_that_does_not_do_as_it_should_is_named(docker, helper, line, told, log) -> None:
    helper("all", line)
    docker.write_text(json.dumps({"credsStore": "all", "auths": {HOST: auth("file")}}))
    with pytest.raises(HostError, match=told) as error:
        find()
    assert error.value.hint
    assert error.value.log == log


def test_a_helper_that_is_not_installed_or_cannot_run_is_named(docker, helper, tmp_path) -> None:
    docker.write_text(json.dumps({"credsStore": "gone"}))
    with pytest.raises(HostError, match=r"docker-credential-gone was not found, which .*config\.json names") as error:
        find()
    assert str(docker) in error.value.hint
    helper("odd", "")
    (tmp_path / "bin" / "docker-credential-odd").write_text("#!/no/such/shell\n")
    docker.write_text(json.dumps({"credsStore": "odd"}))
    with pytest.raises(HostError, match="cannot run docker-credential-odd") as error:
        find()
    assert error.value.hint
    docker.write_text(json.dumps({"credsStore": "../odd"}))
    with pytest.raises(HostError, match=r"names '\.\./odd' as a helper"):
        find()


@pytest.mark.parametrize(
    "said",
    ["{", "[]", '{"auths": [1]}', '{"credHelpers": "x"}', f'{{"auths": {{"{HOST}": {{"auth": "%%"}}}}}}',
     f'{{"auths": {{"{HOST}": {{"auth": 7}}}}}}', f'{{"auths": {{"{HOST}": {{"auth": "YQ=="}}}}}}'],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_named(docker, said) -> None:
    docker.write_text(said)
    with pytest.raises(HostError, match=str(docker)) as error:
        find()
    assert "docker login" in error.value.hint


def test_a_login_for_a_path_is_for_what_is_below_it_alone(docker) -> None:
    said = {HOST: auth("all"), f"{HOST}/team": auth("team"), f"{HOST}/team/a": auth("a"), f"{HOST}/team/b": auth("b")}
    for entries in (said, dict(reversed(said.items()))):
        docker.write_text(json.dumps({"auths": entries}))
        for name, user in (
            ("team/a", "a"), ("team/a/deep", "a"), ("team/ab", "team"), ("team/b", "b"), ("team", "team"),
            ("teams/a", "all"), ("other", "all"),
        ):  # fmt: skip
            assert find(f"{HOST}/{name}:1") == (user, "secret")
    del said[HOST]
    docker.write_text(json.dumps({"auths": said}))
    assert find(f"{HOST}/teams/a:1") is None


def test_a_login_for_a_path_of_docker_hub_is_for_that_path(docker) -> None:
    docker.write_text(json.dumps({"auths": {HUB: auth("all"), "docker.io/team": auth("team")}}))
    assert find("docker.io/team/app:1") == ("team", "secret")
    assert find("docker.io/python:1") == ("all", "secret")


def test_a_user_and_a_password_as_they_are_make_a_login(docker) -> None:
    plain = {"username": "me", "password": "a:b"}
    docker.write_text(json.dumps({"auths": {HOST: plain}}))
    assert find() == ("me", "a:b")
    docker.write_text(json.dumps({"auths": {HOST: plain | auth("encoded")}}))
    assert find() == ("encoded", "secret")
    for less in ({"username": "me"}, {"password": "secret"}, {"username": "", "password": "secret"}):
        docker.write_text(json.dumps({"auths": {HOST: less}}))
        assert find() is None
    docker.write_text(json.dumps({"auths": {HOST: {"username": "me", "password": 1}}}))
    with pytest.raises(HostError, match=str(docker)):
        find()


@pytest.mark.parametrize(
    "entry",
    [auth("me", "") | {"identitytoken": "it"}, {"identitytoken": "it"}, {"registrytoken": "it"}, auth("<token>", "it")],
)
def test_a_token_in_the_file_is_refused_as_that_of_a_helper(docker, entry) -> None:
    docker.write_text(json.dumps({"auths": {HOST: entry}}))
    with pytest.raises(HostError, match=f"{docker} has an identity token for {HOST}") as error:
        find()
    assert "password or an access token" in error.value.hint


@pytest.fixture
def slow(docker, helper, tmp_path) -> Path:
    """The pipe of a helper of all hosts that answers nothing: it says its pid and that of what it started there."""
    pipe = tmp_path / "pids"
    os.mkfifo(pipe)
    helper("all", f"sleep 600 &\necho $$ $! >{pipe}\nwait")
    docker.write_text(json.dumps({"credsStore": "all"}))
    return pipe


def test_a_helper_that_is_given_up_has_ended_with_what_it_started(slow) -> None:
    helpers = Helpers()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(find_credentials, Reference.parse(f"{HOST}/app"), helpers)
        watched = [os.pidfd_open(int(pid)) for pid in read_pipe(slow).split()]
        helpers.close()
        with pytest.raises(Closed, match="docker-credential-all was given up"):
            asking.result(timeout=10)
    assert [wait_gone(fd) for fd in watched] == [True, True]
    for fd in watched:
        os.close(fd)
    with pytest.raises(Closed):
        find_credentials(Reference.parse(f"{HOST}/app"), helpers)


def test_a_helper_that_takes_too_long_is_named_and_has_ended(slow, monkeypatch) -> None:
    monkeypatch.setattr(credentials, "_HELPER_LIMIT_S", 1)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(find)
        watched = [os.pidfd_open(int(pid)) for pid in read_pipe(slow).split()]
        with pytest.raises(HostError, match="docker-credential-all did not answer within 1 s"):
            asking.result(timeout=20)
    assert [wait_gone(fd) for fd in watched] == [True, True]
    for fd in watched:
        os.close(fd)


def test_what_a_helper_leaves_behind_holds_up_nobody(docker, helper, tmp_path) -> None:
    """An agent that keeps keys may have its output still."""
    pipe = tmp_path / "pids"
    os.mkfifo(pipe)
    helper("all", f"cat {pipe} &\n{answer('me')}")
    docker.write_text(json.dumps({"credsStore": "all"}))
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(find)
        try:
            assert asking.result(timeout=10) == ("me", "secret")
        finally:
            os.close(os.open(pipe, os.O_WRONLY))  # once it is read: what waits for more finds its end
