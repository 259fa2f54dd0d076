"""The server's log: lines for people, or one JSON object a line for machines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

FORMATS = ("text", "json")


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, and the fields that the record carries."""

    def format(self, record: logging.LogRecord) -> str:
        found = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=True)


def configure(form: str, *, requests: bool) -> None:
    """Write the gateway's log to stderr in `form`; requests: a line for each request too."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else text)
    root = logging.getLogger("trainer.gateway")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(logging.INFO if form == "json" else logging.WARNING)
    logging.getLogger("trainer.gateway.access").setLevel(logging.INFO if requests else logging.WARNING)
