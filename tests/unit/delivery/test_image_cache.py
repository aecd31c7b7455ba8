"""What is remembered of images and accounts for their delivery."""

from __future__ import annotations

import time

import pytest

from service.delivery import image_cache
from service.delivery.image_cache import _Memory, _Seen


def test_least_recently_used_value_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the one in use is looked up again all the time, since none is trusted for long."""
    monkeypatch.setattr(image_cache, "_MOST_REMEMBERED", 10)
    memory: _Memory[str, int] = _Memory()
    for number in range(30):
        memory.put("used", _Seen(number, time.monotonic() + 60))
        memory.put(f"{number}", _Seen(number, time.monotonic() + 60))
    found = memory.get("used")
    assert found is not None
    assert found.value == 29
    assert memory.get("0") is None
