"""Structured logs: one event a line, with the id of the request that caused it.

Clients choose parts of what is logged, such as a path. `_escape` keeps control characters out of every line, for the
console and for JSON, which people look at in a terminal as well.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from types import NoneType
from typing import Any, TextIO

import msgspec
import structlog

from service.config.settings import Settings
from service.telemetry.console import ConsoleRenderer

_encode = msgspec.json.Encoder(enc_hook=repr).encode
# Values that hold no text of a client, and the fields that hold a traceback.
_PLAIN = frozenset({int, float, bool, NoneType, bytes, datetime})
_OF_LINES = frozenset({"exception", "stack"})
_NAMES = {level: name.lower() for name, level in logging.getLevelNamesMapping().items()}


def configure(settings: Settings, **process: object) -> None:
    """Set up logging for this process; `process` (its part and pid) goes with every line."""
    lines = _Lines(sys.stderr)
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    rendering: list[structlog.typing.Processor] = [structlog.processors.format_exc_info, _escape]
    if console:
        rendering += [_indent_exception, ConsoleRenderer(colours=sys.stderr.isatty())]
    else:
        rendering.append(structlog.processors.JSONRenderer(_to_json))
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lines,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**process)
    requests.configure(lines=None if console else lines, level=level, process=process)
    _configure_libraries(shared, rendering)


class _Lines:
    """A logger whose lines go out together at the next turn of the event loop: writing costs more than what is
    written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._waiting: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # where a write is due
        atexit.register(self._write)

    def __call__(self, *_: object) -> _Lines:
        return self

    def msg(self, line: str) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # in a thread, or before the loop runs
            self._put([line])
            return
        self._waiting.append(line)
        if self._loop is not loop:
            self._loop = loop
            loop.call_soon(self._write)

    debug = info = warning = error = critical = msg

    def _write(self) -> None:
        lines, self._waiting, self._loop = self._waiting, [], None
        if lines:
            self._put(lines)

    def _put(self, lines: Sequence[str]) -> None:
        with suppress(OSError):  # a full disk or a terminal that is gone: the work goes on
            self._stream.write("\n".join([*lines, ""]))
            self._stream.flush()


class Requests:
    """The one line of each request. JSON is written past structlog, whose chain would be a good part of a GET."""

    def __init__(self) -> None:
        self.configure(lines=None, level=logging.INFO, process={})

    def configure(self, *, lines: _Lines | None, level: int, process: Mapping[str, object]) -> None:
        self._lines = lines
        self._level = level
        self._process = process
        self._structured = structlog.get_logger("service.api")

    def write(self, level: int, fields: dict[str, object]) -> None:
        if self._lines is None:
            self._structured.log(level, "request", **fields)
        elif level >= self._level:
            now = datetime.now(UTC)
            line = {**self._process, **fields, "event": "request", "level": _NAMES[level], "timestamp": now}
            self._lines.msg(_to_clean_json(line))


requests = Requests()


def _configure_libraries(shared: list[structlog.typing.Processor], rendering: list[structlog.typing.Processor]) -> None:
    """What libraries log comes out alike, from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)  # a traceback for each connection that was lost


def _escape(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Write an escape such as `\\x1b` or `\\u202e` for each character that is neither visible nor a space: control
    characters, separators of lines, marks of direction, lone surrogates. Only tracebacks have lines.
    """
    for key, value in event.items():
        kind = type(value)
        if kind is str:
            if not value.isprintable():
                lines = value.split("\n") if key in _OF_LINES else [value]
                event[key] = "\n".join(map(_escape_text, lines))
        elif kind not in _PLAIN:
            event[key] = _escape_value(value)
    return event


def _escape_value(value: object) -> object:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, str):
        return _escape_text(value)
    if isinstance(value, Mapping):
        return {_escape_value(key): _escape_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_escape_value(inner) for inner in value]
    return _escape_text(repr(value))


def _escape_text(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def _indent_exception(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A message of several lines within a traceback must not look like lines of the log."""
    for key in _OF_LINES & event.keys():
        event[key] = "\n".join(f"  {line}" for line in str(event[key]).split("\n"))
    return event


def _to_clean_json(line: dict[str, Any]) -> str:
    """Escape what has to be escaped. A look at the whole line costs less than one at each of its values."""
    try:
        text = _to_json(line)
    except UnicodeEncodeError:  # a lone surrogate
        text = "\\"
    return text if text.isascii() and "\\" not in text and "\x7f" not in text else _to_json(_escape(None, "", line))


def _to_json(event: object, **_: object) -> str:
    return _encode(event).decode()
