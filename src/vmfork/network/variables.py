"""The variables by which programs of a guest find the proxy that is theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# What squid made usual.
PROXY_PORT = 3128
_PROXIED = ("http_proxy", "https_proxy", "all_proxy")


def proxy_env(hostname: str, own: Mapping[str, str]) -> dict[str, str]:
    """The variables by which programs find the proxy, both ways they are written, but for those that `own` sets.

    `ALL_PROXY` is one for HTTP, too: programs that have no SOCKS fail where it says so.
    """
    url = f"http://127.0.0.1:{PROXY_PORT}"
    found = dict.fromkeys(_PROXIED, url) | {"no_proxy": f"localhost,127.0.0.1,127.0.0.0/8,::1,{hostname}"}
    set_by_user = {name.lower() for name in own}
    return {
        spelled: value
        for name, value in found.items() if name not in set_by_user
        for spelled in (name, name.upper())
    }  # fmt: skip
