"""A job that records its runs."""

from __future__ import annotations

import pytest

from tests.support.queue_workers import Recorder


@pytest.fixture
def job() -> Recorder:
    return Recorder()
