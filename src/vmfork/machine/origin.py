"""Where a machine came from, and why from there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Where = Literal["template", "pool", "server", "booted"]

_TOLD = {
    "template": ("forked", " from "),
    "pool": ("kept ready in this process", ", a fork of "),
    "server": ("kept ready by the VM cache server", ", a fork of "),
    "booted": ("booted", " from "),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """`kind` is where it came from; `reason` why from there, one word that is counted; `detail` the same for people.

    ```
    template    forked for whoever asked                      exact, grown, larger: how it comes to its size
    pool        was kept ready in the process that asked      the same
    server      was kept ready by a VM cache server           the same
    booted      from its image                                asked, or why nothing else was to be had
    ```
    `made_from` names what it was made from, for people; empty where that is its image.
    """

    kind: Where
    reason: str = "exact"
    detail: str = ""
    made_from: str = ""

    def __str__(self) -> str:
        told, of = _TOLD[self.kind]
        why = self.detail or ("" if self.reason in ("exact", "asked") else self.reason)
        return told + (of + self.made_from if self.made_from else "") + (f" ({why})" if why else "")


def origin_of(template: str) -> Origin:
    """That of a machine that no factory gave: a fork of `template`, or, without one, a machine that was booted."""
    if template:
        return Origin(kind="template", made_from=f"template {template!r}")
    return Origin(kind="booted", reason="asked")
