"""Structured logs: one event a line, with the id of the request that caused it.

Clients control parts of what is logged, e.g. a path. `_escape` removes control characters from every line, also from
JSON, which people read in a terminal as well.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from datetime import datetime
from types import NoneType
from typing import Any, TextIO

import msgspec
import structlog

from service.config.settings import Settings
from service.telemetry.console import ConsoleRenderer
from service.telemetry.request_lines import make_console_renderer, make_json_renderer
from service.telemetry.requests import request_log

_encode = msgspec.json.Encoder(enc_hook=repr).encode
# Types that cannot contain a client's text, and fields that contain a traceback.
_PLAIN = frozenset({int, float, bool, NoneType, bytes, datetime})
_GATHER_S = 0.02
_MULTILINE_FIELDS = frozenset({"exception", "stack"})


def configure(settings: Settings, **process: object) -> None:
    """Sets up logging for this process. The fields `process` (its part and pid) are in every line."""
    lines = _Lines(sys.stderr)
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    rendering: list[structlog.typing.Processor] = [structlog.processors.format_exc_info, _escape]
    if console:
        to_console = ConsoleRenderer(colours=sys.stderr.isatty())
        rendering += [_indent_exception, to_console]
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

    def write_request(line: dict[str, Any]) -> None:
        lines.put_soon(to_console(None, "", _escape(None, "", line)) if console else _to_clean_json(line))

    request_log.configure(
        render=make_console_renderer(colours=sys.stderr.isatty()) if console else make_json_renderer(_to_json(process)),
        write_text=lines.put_soon,
        write_fields=write_request,
        level=level,
        process=process,
    )
    _configure_libraries(shared, rendering)


class _Lines:
    """A logger that writes several lines together, because a write costs more than a line: all lines of one iteration
    of the event loop, and lines of requests within `_GATHER_S`.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._buffer: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # the loop that a write is scheduled on
        self._later_loop: asyncio.AbstractEventLoop | None = None  # the same for a write of requests
        atexit.register(self._write)

    def __call__(self, *_: object) -> _Lines:
        return self

    def msg(self, line: str) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # in a thread, or no loop runs
            self._put([line])
            return
        self._buffer.append(line)
        if self._loop is not loop:
            self._loop = loop
            loop.call_soon(self._write)

    debug = info = warning = error = critical = msg

    def put_soon(self, line: str) -> None:
        """Like `msg`, but the line may be written a little later."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._put([line])
            return
        self._buffer.append(line)
        if self._later_loop is not loop:
            self._later_loop = loop
            loop.call_later(_GATHER_S, self._write_later)

    def _write_later(self) -> None:
        self._later_loop = None
        self._write()

    def _write(self) -> None:
        lines, self._buffer, self._loop = self._buffer, [], None
        if lines:
            self._put(lines)

    def _put(self, lines: Sequence[str]) -> None:
        with suppress(OSError):  # a full disk or a closed terminal: the service goes on
            self._stream.write("\n".join([*lines, ""]))
            self._stream.flush()


def _configure_libraries(shared: list[structlog.typing.Processor], rendering: list[structlog.typing.Processor]) -> None:
    """Formats warnings and errors of libraries in the same way."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)  # it logs a traceback for each lost connection


def _escape(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replaces characters that are not printable by escapes such as `\\x1b` or `\\u202e`.

    These are control characters, line separators, direction marks and lone surrogates. Only tracebacks keep newlines.
    """
    for key, value in event.items():
        kind = type(value)
        if kind is str:
            if not value.isprintable():
                lines = value.split("\n") if key in _MULTILINE_FIELDS else [value]
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
    """Indents tracebacks, so that a message of several lines in them does not look like log lines."""
    for key in _MULTILINE_FIELDS & event.keys():
        event[key] = "\n".join(f"  {line}" for line in str(event[key]).split("\n"))
    return event


def _to_clean_json(line: dict[str, Any]) -> str:
    """Escapes a line only if necessary: checking the whole line costs less than checking each value."""
    try:
        text = _to_json(line)
    except UnicodeEncodeError:  # a lone surrogate
        text = "\\"
    return text if text.isascii() and "\\" not in text and "\x7f" not in text else _to_json(_escape(None, "", line))


def _to_json(event: object, **_: object) -> str:
    return _encode(event).decode()
