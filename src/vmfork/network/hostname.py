"""What a name of a host may look like."""

from __future__ import annotations

import re

from vmfork.errors import ConfigError

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# What inet_aton(3) takes for an address: 127.1, 0x7f.1, 2130706433. A name of that form would be one to some resolvers.
_NUMBER = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)")
_LONGEST = 253


def find_name(text: str) -> str | None:
    """`text` in lower case and without a dot at its end. `None` where it is no name of a host: an address, say."""
    name = text.lower().removesuffix(".")
    if len(name) > _LONGEST or not _NAME.fullmatch(name) or _NUMBER.fullmatch(name.rpartition(".")[2]):
        return None
    return name


def check_name(text: str, *, field: str) -> str:
    """As `find_name`. Raises `ConfigError` where that finds none."""
    if (name := find_name(text)) is None:
        hint = "letters, digits and -, in labels parted by dots; a name in another script has the form xn--..."
        raise ConfigError(field, text, f"{text!r} is not a name of a host", hint=hint)
    return name


def is_localhost(name: str) -> bool:
    """Whether the name is, by RFC 6761, whoever looks it up."""
    return name == "localhost" or name.endswith(".localhost")
