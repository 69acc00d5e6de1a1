"""A command runs as if a root file system were that of this machine; whatever becomes of it, nothing is left.

It runs in mount and process namespaces of its own. The kernel ends all processes of them with their first one, and
unmounts what was mounted there with their last; the first one dies with us (`setpriv`, `unshare --kill-child`). Root
may make them; another user may where the host allows user namespaces, and is root in one.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from hosts import cache

if TYPE_CHECKING:
    from collections.abc import Sequence

ENTER = Path(__file__).with_name("enter")

# What a package manager needs to know of this host's way to the network, and tests of where they run.
_PASSED = (
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "CI", "TERM",
)  # fmt: skip
_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


def run_on(
    layers: Sequence[Path], argv: Sequence[str], *, checkout: Path | None = None, kept: Path | None = None
) -> int:
    """The exit status of `argv` as it ran in a root file system made of `layers`, the topmost first.

    `checkout` is seen at `/src`. What is written in the root is in `kept`, a layer for other runs; without it, and in
    the checkout, it is lost. Ctrl-C reaches the command, and its end is waited for.
    """
    stage = cache.find_folder() / "stage"
    stage.mkdir(exist_ok=True)
    child = subprocess.Popen(
        [
            *("setpriv", "--pdeathsig", "KILL", "--", "unshare", "--mount", "--pid", "--fork", "--kill-child"),
            *(() if os.geteuid() == 0 else ("--user", "--map-root-user", "--map-auto")),
            *("--", "sh", ENTER, stage, ":".join(map(str, layers)), kept or "", checkout or ""),
            *("env", "-i", *_environment(), *argv),
        ]
    )
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue  # the terminal told the command as well


def _environment() -> list[str]:
    passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
    if Path(_AUTHORITIES).exists():
        passed["PIP_CERT"] = _AUTHORITIES  # enter brings it; pip looks into a bundle of its own
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    own = {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return [f"{name}={value}" for name, value in {**passed, **own}.items()]
