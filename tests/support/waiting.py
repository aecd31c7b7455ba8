"""Waiting for a condition, with a time limit."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any


async def until(condition: Callable[[], Any], timeout_s: float = 20) -> Any:
    """Polls `condition`, which may be a coroutine function, until it is true. Returns its value."""
    async with asyncio.timeout(timeout_s):
        while True:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.02)


def wait_for(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    """Polls `condition` until it is true, in the calling thread."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition is not met in time"
        time.sleep(0.02)
