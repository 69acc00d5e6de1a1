"""What happened to which machine, for programs that read logs: the fields that every record of ours may have.

```
event       what happened, a word that stays the same: machine.forked (docs/reference/logs.md has all)
vm_id       the machine
template    the template
error       the code of the error
took_s      seconds
```
They are attributes of the `logging.LogRecord`, missing where there is nothing to say.
"""

from __future__ import annotations

from typing import Any

FIELDS = ("event", "vm_id", "template", "error", "took_s")


def about(event: str, *, vm_id: str = "", template: str = "", error: str = "", took_s: float = 0.0) -> dict[str, Any]:
    """The `extra` of a log call about `event`; what is empty is left out."""
    said = {"event": event, "vm_id": vm_id, "template": template, "error": error, "took_s": took_s}
    return {name: value for name, value in said.items() if value}


def code_of(error: BaseException) -> str:
    """The code of an error of ours, the class of another."""
    return getattr(error, "code", type(error).__name__)
