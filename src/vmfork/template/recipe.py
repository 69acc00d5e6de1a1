"""What is done to a booted machine before it is frozen, as a value."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmfork.adopt.secrets import Secrets
from vmfork.errors import ConfigError
from vmfork.machine.ways import load_ways
from vmfork.wire.command import check_env

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmfork.network.policy import NetworkPolicy

STEP_LIMIT_S = 600.0
READY_LIMIT_S = 120.0
_NAME_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is done to a booted machine before it is frozen.

    `warm_up` are shell commands, run in order, each at most `step_timeout_s` seconds; a failing one fails the build.
    `ready` is a shell command that is tried until it succeeds, at most `ready_timeout_s` seconds. Both run with `env`.
    A machine that holds one of `secrets` is not frozen. `network` is what the commands may reach, and ends with them.
    """

    warm_up: tuple[str, ...] = ()
    ready: str = ""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: Secrets = field(default_factory=Secrets)
    step_timeout_s: float = STEP_LIMIT_S
    ready_timeout_s: float = READY_LIMIT_S
    network: NetworkPolicy = "none"

    def __post_init__(self) -> None:
        if self.network != "none":
            load_ways().check_policy(self.network)
        for command in (*self.warm_up, self.ready):
            if not isinstance(command, str) or "\0" in command:
                raise ConfigError("warm_up", command, "a warm-up command is a line of shell")
        object.__setattr__(self, "env", check_env(self.env))

    @property
    def name(self) -> str:
        """Names what is done: see `name_recipe`."""
        return name_recipe(self.warm_up, self.ready)


def name_recipe(warm_up: Sequence[str], ready: str) -> str:
    """Names what was done to a machine: another for another warm-up or ready check, empty where there was neither."""
    if not (warm_up or ready):
        return ""
    return hashlib.sha256(json.dumps([[*warm_up], ready]).encode()).hexdigest()[:_NAME_SIZE]
