"""The log of a server as lines of JSON, for whoever collects logs."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmfork.journal import FIELDS, about

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfork.progress import Progress, ProgressListener

_log = logging.getLogger("vmfork")


class JSONLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the fields of `journal` that the record has."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        said |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said, default=str)


@contextmanager
def json_lines() -> Iterator[ProgressListener]:
    """What is logged in the block, by whatever library, goes to standard error as JSON. Gives a listener that logs."""
    handler, root, level = logging.StreamHandler(sys.stderr), logging.getLogger(), _log.level
    handler.setFormatter(JSONLines())
    root.addHandler(handler)
    _log.setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    try:
        yield _log_progress
    finally:
        logging.captureWarnings(capture=False)
        _log.setLevel(level)
        root.removeHandler(handler)


def _log_progress(event: Progress, /) -> None:
    _log.info("%s: %s", event.task, event.step, extra=about("progress"))
