"""Structured logs: one event a line, with the id of the request that caused it."""

from __future__ import annotations

import logging
import sys

import msgspec
import structlog

from service.settings import Settings


def configure(settings: Settings, **process: object) -> None:
    """Set up logging for this process; `process` (its part and pid) goes with every line."""
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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**process)
    _configure_libraries(shared, renderer)


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
    return msgspec.json.encode(event, enc_hook=repr).decode()
