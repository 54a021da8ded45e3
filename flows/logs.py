"""Log lines that say which run, stage and key they belong to: readable, or one JSON object a line (SNAPFUSION_LOG=json)."""

import json
import logging
import os
import sys
from datetime import UTC, datetime

VARIABLE = "SNAPFUSION_LOG"
_about: dict[str, str] = {}  # of the stage that this process, a task, works on


def wants_json() -> bool:
    """True where somebody collects the lines."""
    return os.environ.get(VARIABLE, "") == "json"


def about(**fields: str) -> None:
    """Name what this process works on from here on; empty values are left out."""
    _about.clear()
    _about.update({name: value for name, value in fields.items() if value})


def configure_logging() -> None:
    """One line per event on standard error, for this process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if wants_json() else Readable())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in ("httpx", "urllib3", "botocore", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # coremltools warns at every import that this is no Mac.
    logging.getLogger("coremltools").setLevel(logging.ERROR)


class Readable(logging.Formatter):
    """`steps.training.loop iteration=40 loss=0.31 stage=student_8 key=0f3a`; Metaflow itself puts the run before it."""

    def __init__(self) -> None:
        super().__init__("%(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without a traceback."""
        line = super().formatMessage(record)
        said = (
            f"{name}={value}" for name, value in _about.items() if name != "run" and f"{name}=" not in line
        )
        return " ".join((line, *said))


class JsonLines(logging.Formatter):
    """`time` (UTC), `level`, `logger`, `message`, a `traceback` if there is one, and `run`, `stage`, `label`, `key`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        found = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_about,
        }
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=False)
