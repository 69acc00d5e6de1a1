"""The environment of the programs that this process starts: its own stays here, since API keys lie in it."""

from __future__ import annotations

import os

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# How an archive is reached is said here and nowhere else. Both spellings are in use.
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")


def bare_environ() -> dict[str, str]:
    """Where programs are, and a language that each knows."""
    return {"PATH": PATH, "LC_ALL": "C.UTF-8"}


def proxy_environ() -> dict[str, str]:
    """What this process was told of proxies, for a program that fetches something."""
    names = (*_PROXIES, *map(str.upper, _PROXIES))
    return {name: os.environ[name] for name in names if name in os.environ}
