"""Lines of a log that a logger packed into one: records of JSON, and newlines spelled out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

COLOUR = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))|\x08")
TRACEBACK_BEGINS = "Traceback (most recent call last)"
LONGEST_MARK = 120  # characters in front of a record
# keys under which loggers write JSON: structlog, python-json-logger, ECS, docker, Google, loguru
JSON_TEXTS = (
    *("log", "text", "textPayload", "message", "msg", "event", "body"),
    *("exc_info", "exception", "exc_text", "traceback", "stack", "stack_trace", "stacktrace"),
    *("error", "error.stack_trace", "jsonPayload"),
)
ESCAPED_TRACEBACK = f"{TRACEBACK_BEGINS}:\\n"  # as torchrun's @record prints it, or a repr
END_OF_TEXT = re.compile(r"(?:\\n)?[\"'][,)}\]]*$")
JSON_RANKS = ("rank", "RANK", "global_rank", "Rank")
JSON_LEVELS = ("level", "levelname", "severity", "log.level", "levelName")
SERIOUS = re.compile(r"(?i)err|crit|fatal")
QUIET = re.compile(r"(?i)trace|debug|info|warn|notice")


def unpacked(raw: str) -> list[str]:
    """The line without colours; the lines in it, if a logger packed them into one."""
    if raw.endswith("}") and '{"' in raw[:LONGEST_MARK]:
        texts = _from_json(raw)
    elif ESCAPED_TRACEBACK in raw:
        quoted = raw.split(TRACEBACK_BEGINS)[0].endswith(("'", '"'))
        texts = (END_OF_TEXT.sub("", raw) if quoted else raw).replace('\\"', '"').split("\\n")
    else:
        texts = [raw]
    return [COLOUR.sub("", text) for text in texts]


def _from_json(raw: str) -> list[str]:
    """The lines that a logger packed into one of JSON, with the rank that it tells in front."""
    at = raw.index('{"')
    try:
        told = json.loads(raw[at:])
    except ValueError:
        return [raw]
    texts = list(dict.fromkeys(_texts(told)))
    if not texts:
        return [raw]
    rank = next((str(told[key]) for key in JSON_RANKS if str(told.get(key)).isdigit()), "")
    level = next((str(told[key]) for key in JSON_LEVELS if key in told), "")
    # what a logger only remarks is no error, whatever it begins with
    word = "INFO " if QUIET.match(level) else "ERROR " if SERIOUS.match(level) else ""
    word = "" if "\n" in texts[0].rstrip() else word
    mark = raw[:at] + (f"[rank{rank}]: " if rank else "")
    lines = [line for text in texts for line in text.rstrip("\n").split("\n")]
    return [f"{mark}{word if line is lines[0] else ''}{line}" for line in lines]


def _texts(told: dict[str, object]) -> Iterator[str]:
    for key in JSON_TEXTS:
        value = told.get(key)
        if isinstance(value, str) and value:
            yield value
        elif isinstance(value, dict):
            yield from _texts(value)
        elif isinstance(value, list):
            yield "".join(each if isinstance(each, str) else _traceback(each) for each in value)


def _traceback(told: object) -> str:
    """The text of a traceback that structlog told as a dict."""
    if not isinstance(told, dict) or "exc_type" not in told:
        return ""
    frames = [each for each in told.get("frames", ()) if isinstance(each, dict)]
    lines = [
        f'  File "{each.get("filename")}", line {each.get("lineno", 0)}, in {each.get("name")}\n'
        f"    {each.get('line') or '...'}\n"
        for each in frames
    ]
    head = f"{TRACEBACK_BEGINS}:\n" if lines else ""
    return f"{head}{''.join(lines)}{told['exc_type']}: {told.get('exc_value', '')}\n"
