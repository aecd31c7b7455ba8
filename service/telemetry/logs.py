"""Structured logs: one event a line, with the id of the request that caused it."""

from __future__ import annotations

import asyncio
import atexit
import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TextIO

import msgspec
import structlog

from service.settings import Settings

_encode = msgspec.json.Encoder(enc_hook=repr).encode
_NAMES = {level: name.lower() for name, level in logging.getLevelNamesMapping().items()}


def configure(settings: Settings, **process: object) -> None:
    """Set up logging for this process; `process` (its part and pid) goes with every line."""
    lines = _Lines(sys.stderr)
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(pad_event_to=20) if console else structlog.processors.JSONRenderer(_to_json)
    )
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lines,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**process)
    requests.configure(lines=None if console else lines, level=level, process=process)
    _configure_libraries(shared, renderer)


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
            self._lines.msg(_to_json(line))


requests = Requests()


def _configure_libraries(shared: list[structlog.typing.Processor], renderer: structlog.typing.Processor) -> None:
    """What libraries log comes out alike, from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)  # a traceback for each connection that was lost


def _to_json(event: object, **_: object) -> str:
    return _encode(event).decode()
