"""Logging to stderr, as lines of text or of JSON."""

import json
import logging
import re
import sys
import time
from typing import Any, Literal

from pixtral_core.telemetry.request_log import current

# The loggers of this project. Debug records of other libraries quote their input: Pillow quotes a
# file's EXIF.
OURS = ("pixtral_cli", "pixtral_core", "pixtral_decoder", "pixtral_encoder", "pixtral_gateway")

_PLAIN = re.compile(r"[\w./:+-]+", re.ASCII)


class JsonFormatter(logging.Formatter):
    """One JSON object for each record: time (RFC 3339, UTC), level, logger, message, the ids of the
    call, the facts of a call that has ended, and any traceback."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


class TextFormatter(logging.Formatter):
    """One line a record, with the same facts as `name=value` at its end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        pairs = (f" {name}={_plain(value)}" for name, value in _facts(record).items())
        return super().formatMessage(record) + "".join(pairs)


def configure_logging(level: str, form: Literal["text", "json"]) -> None:
    """Sends the root logger's records to stderr, and removes earlier handlers.

    "debug" applies to this project's own loggers alone; libraries then log from "info" on.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    least = level.upper()
    others = "INFO" if level == "debug" else least
    logging.basicConfig(level=others, handlers=[handler], force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(least)
    # The name of the process takes a fifth of the time of a line, and no line shows it. The numbers
    # of process and thread cost nothing, and a library's own format, such as vLLM's, fails without
    # them.
    logging.logMultiprocessing = False


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    call = current()
    if call is not None:
        facts["request_id"] = call.request_id
        if call.span.trace_id:
            facts |= {"trace_id": call.span.trace_id, "span_id": call.span.span_id}
    for name, value in getattr(record, "facts", {}).items():
        facts[name] = round(value, 6) if isinstance(value, float) else value
    return facts


def _plain(value: Any) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
