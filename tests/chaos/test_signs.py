"""What the logs of a fault are looked through for."""

from __future__ import annotations

import json

import pytest

from tests.chaos.site import is_unexpected

_AWAY = "service.errors.ServiceError: database-unavailable: The database cannot be reached; try again shortly."
_BEGINNING = "Traceback (most recent call last):\n  File x\n"


@pytest.mark.parametrize(
    "line",
    [
        _BEGINNING.splitlines()[0],
        json.dumps({"event": "x", "exception": _BEGINNING + "KeyError: 1"}),
        json.dumps({"event": "x", "exception": f"{_BEGINNING}{_AWAY}\n\n{_BEGINNING}KeyError: 1"}),
        json.dumps({"event": "Task exception was never retrieved", "exception": _BEGINNING + _AWAY}),
        json.dumps({"event": "request.failed"}),
    ],
)
def test_an_error_that_nobody_expected_is_told(line: str) -> None:
    assert is_unexpected(line)


def test_a_server_that_is_away_is_expected() -> None:
    assert not is_unexpected(json.dumps({"event": "cron failed", "exception": _BEGINNING + _AWAY}))
    assert not is_unexpected(json.dumps({"event": "worker.queue_unavailable"}))
