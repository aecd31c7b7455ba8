"""Fixtures for tests of real processes."""

from __future__ import annotations

from typing import Any

import pytest

from service.config.settings import Settings
from tests.support.stored_state import StoredState


@pytest.fixture
def stored(connection: Any, settings: Settings) -> StoredState:
    return StoredState(connection, settings)
