"""Who we are to a registry, as Docker's command finds it (github.com/docker/cli, cli/config).

```
$DOCKER_CONFIG/config.json     where that is set, and nothing else; otherwise
~/.docker/config.json
    credHelpers  {HOST: NAME}  docker-credential-NAME knows, for this host; otherwise
    credsStore   NAME          it knows for all; what it does not know, or without either,
    auths        {HOST: {"auth": base64 of USER:PASSWORD}}, or {"username": USER, "password": PASSWORD}
                 {HOST/PATH: ...}  the same, for the repositories below PATH alone (`skopeo login`)
```
Docker Hub's HOST is `https://index.docker.io/v1/` there. Others may have a scheme and a path around theirs too, of old:
behind a scheme any path is none, and so are `/v1` and `/v2` (containers/image, pkg/docker/config).

`oras` reads these files as well. It merges both in no certain order (0.2.43: a set), and takes a helper that fails, or
is not installed, for one that knows nothing: what a registry answers then leads nobody to the reason.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmfork.errors import HostError
from vmfork.host.tool import find_tool
from vmfork.oci.reference import HUB

if TYPE_CHECKING:
    from vmfork.oci.keychain import Helpers
    from vmfork.oci.reference import Reference

# By this it is asked for; the others are what tools beside Docker's write.
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", HUB)
# A helper may ask its user to unlock what it keeps.
_HELPER_LIMIT_S = 120
# What helpers say of a host that they do not know (docker-credential-helpers, credentials/error.go).
_UNKNOWN = "credentials not found"
# Their name for one who has no password, but a token that another service takes (docker/cli, native_store.go).
_IDENTITY = "<token>"
# What says so in the file: that token, and one that a registry takes as it is (docker/cli, AuthConfig).
_TOKENS = ("identitytoken", "registrytoken")
# Of the two versions of what registries speak, as old tools wrote them behind a host.
_OLD_PATHS = ("v1", "v2")


def find_credentials(reference: Reference, helpers: Helpers) -> tuple[str, str] | None:
    """The user and the password, or `None` where nobody is known there.

    Raises `HostError` for a file that makes no sense, and for a helper that is missing, fails, or says what it should
    not, and `Closed` when `helpers` are closed meanwhile.
    """
    path = Path(os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker"), "config.json")
    said = _read(path)
    keys = _keys_of(reference)
    named = _table(said, "credHelpers")
    helper = next((named[key] for key in keys if key in named), said.get("credsStore"))
    found = _ask(helper, keys[0], path, helpers) if helper else None
    if found is None:
        auths = _table(said, "auths")
        matching = _matching(auths, keys, reference.repository)
        found = next((pair for key in matching if (pair := _decode(auths[key], key, path))), None)
    return found


def _keys_of(reference: Reference) -> tuple[str, ...]:
    """What the host is called in such a file; the first is the one that a helper is asked for."""
    host = reference.host
    if host == HUB:
        return _HUB_KEYS
    name, colon, port = host.partition(":")
    other = {"localhost": "127.0.0.1", "127.0.0.1": "localhost"}.get(name)
    return (host, *([f"{other}{colon}{port}"] if other else []))


def _matching(auths: dict[str, Any], keys: tuple[str, ...], repository: str) -> list[str]:
    """Entries for that repository: the longest path comes first, and of hosts those without anything around them."""

    def is_for(key: str) -> bool:
        host, path = _split(key)
        return host in keys and f"{repository}/".startswith(f"{path}/" if path else "")

    exact = [key for key in keys if key in auths]
    found = exact + [key for key in auths if key not in exact and is_for(key)]
    return sorted(found, key=lambda key: len(_split(key)[1]), reverse=True)  # those of one length stay in their order


def _split(key: str) -> tuple[str, str]:
    """The host that an entry is for, and the path below which its repositories are."""
    _, scheme, rest = key.rpartition("://")
    host, _, path = rest.partition("/")
    path = path.strip("/")
    return host, "" if scheme or path in _OLD_PATHS else path


def _read(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise _refuse(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _refuse(path, f"is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise _refuse(path, "is no table")
    for name in ("auths", "credHelpers"):
        if not isinstance(said.get(name) or {}, dict):
            raise _refuse(path, f"has {name!r}, which is no table")
    return said


def _table(said: dict[str, Any], name: str) -> dict[str, Any]:
    return said.get(name) or {}


def _decode(entry: object, key: str, path: Path) -> tuple[str, str] | None:
    """`None` for an entry that says nothing: who logs in with a helper has such."""
    said = entry if isinstance(entry, dict) else {}
    if any(said.get(name) for name in _TOKENS):
        raise _refuse_token(path, key)
    text = said.get("auth")
    if not text:
        return _pair(said, key, path)
    try:
        user, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
    except (ValueError, TypeError) as error:
        raise _refuse(path, f"has an 'auth' for {key} that is not base64 of text") from error
    if not colon:
        raise _refuse(path, f"has an 'auth' for {key} that is not base64 of USER:PASSWORD")
    if user == _IDENTITY:
        raise _refuse_token(path, key)
    return user, password.rstrip("\0")  # as Docker reads it


def _pair(said: dict[str, Any], key: str, path: Path) -> tuple[str, str] | None:
    """The user and the password as they are, which Docker reads too and some tools write."""
    user, password = said.get("username"), said.get("password")
    if not user or not password:
        return None
    if not isinstance(user, str) or not isinstance(password, str):
        raise _refuse(path, f"has a login for {key} that is no text")
    return user, password


def _ask(helper: object, key: str, path: Path, helpers: Helpers) -> tuple[str, str] | None:
    """What the helper knows; `None` where it does not know that host."""
    program = f"docker-credential-{helper}"
    hint = f"see whether `echo {key} | {program} get` answers, or log in without it: take it out of {path}"
    if not isinstance(helper, str) or "/" in helper:
        raise _refuse(path, f"names {helper!r} as a helper")
    argv = [find_tool(program, f"which {path} names to log in", hint=f"install it, or take it out of {path}"), "get"]
    try:
        done = helpers.run(argv, key.encode(), limit_s=_HELPER_LIMIT_S)
    except OSError as error:
        raise HostError(f"cannot run {program}: {error.strerror}", hint=hint) from error
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{program} did not answer within {_HELPER_LIMIT_S} s", hint=hint) from error
    log = (done.stdout + done.stderr).decode(errors="replace").strip()
    if done.returncode:
        if _UNKNOWN in log:
            return None
        raise HostError(f"{program} failed with {done.returncode}", hint=hint, log=log)
    try:
        answer = json.loads(done.stdout)
        user, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError, RecursionError):
        user = secret = None
    if not isinstance(user, str) or not isinstance(secret, str):
        raise HostError(f"{program} answered what is no name and password", hint=hint)  # and may be a secret
    if user == _IDENTITY:
        raise _refuse_token(program, key)
    return (user, secret) if user or secret else None


def _refuse_token(where: object, key: str) -> HostError:
    """Read as a login it would be one with an empty password, or nobody's."""
    return HostError(
        f"{where} has an identity token for {key}, of which vmfork makes no use",
        hint="log in with a password or an access token",
    )


def _refuse(path: Path, reason: str) -> HostError:
    return HostError(f"Docker's file of credentials {path} {reason}", hint="mend it, or log in anew: docker login HOST")
