"""Outages in the log: a line at the start, one a minute, and one at the end, no matter how many calls fail."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import structlog

from service.dependencies.reasons import explain_database, explain_queue, explain_storage
from service.errors import ServiceError

log = structlog.get_logger("service")

_REPEAT_S = 60.0
# An outage ends when a check passes and no call has failed for this long. The time doubles with each outage that
# follows another one within a minute.
_QUIET_S = 2.0
_MAX_QUIET_S = 32.0
# Errors that are reported to their outage where they are raised.
_REPORTED = frozenset({"database-unavailable", "queue-unavailable", "storage-unavailable"})


class Outage:
    """The outage of one dependency, as this process sees it. Code that gets an error from the dependency reports it."""

    def __init__(self, name: str, explain: Callable[[BaseException], str]) -> None:
        self.explain = explain
        self._name = name
        self._started_at: float | None = None
        self._ended_at = -_REPEAT_S
        self._logged_at = 0.0
        self._failed_at = 0.0
        self._failures = 0
        self._quiet_s = _QUIET_S

    @property
    def is_under_way(self) -> bool:
        return self._started_at is not None

    def report(self, error: BaseException) -> None:
        """Starts an outage, or counts a failure of the current one."""
        now = self._failed_at = time.monotonic()
        self._failures += 1
        if self._started_at is None:
            self._started_at = now
            is_repeated = now - self._ended_at < _REPEAT_S
            self._quiet_s = min(2 * self._quiet_s, _MAX_QUIET_S) if is_repeated else _QUIET_S
            self._log(error, now)
        elif now - self._logged_at >= _REPEAT_S:
            self._log(error, now, seconds=round(now - self._started_at), failures=self._failures)

    def report_success(self) -> None:
        """Ends the outage after a check that passed, unless calls that the check does not cover still fail."""
        now = time.monotonic()
        if self._started_at is None or now - self._failed_at < self._quiet_s:
            return
        if structlog.is_configured():
            log.info(f"{self._name}.available", seconds=round(now - self._started_at, 1), failures=self._failures)
        self._started_at, self._ended_at, self._failures = None, now, 0

    def _log(self, error: BaseException, now: float, **fields: object) -> None:
        self._logged_at = now
        if not structlog.is_configured():
            return  # a command, which prints errors itself
        log.warning(f"{self._name}.unavailable", reason=self.explain(error), error=repr(error), **fields)


DATABASE = Outage("database", explain_database)
QUEUE = Outage("queue", explain_queue)
STORAGE = Outage("storage", explain_storage)


def level_of(error: BaseException) -> int:
    """Returns the level at which to log work that an error deferred. An outage has its own lines in the log."""
    is_reported = isinstance(error, ServiceError) and error.code in _REPORTED
    return logging.DEBUG if is_reported else logging.WARNING
