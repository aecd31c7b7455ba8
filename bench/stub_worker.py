"""A worker with a stub for the probe, which returns the same result for every picture without decoding it.

It lets a benchmark measure the queue, the rows and the worker itself. It is run like `daguerre worker`, with the same
environment.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import worker.resources
from service.config.settings import load
from service.images.probe import Probe
from worker.main import run
from worker.sandbox.pool import MAX_PREFETCH, DecoderPool

_PROBE = Probe("jpeg", 640, 480, 1, 1, False, {"Make": "Daguerre"}, bytes(480))


class StubDecoderPool(DecoderPool):
    """Has no processes and returns immediately."""

    @property
    def prefetch(self) -> int:
        return MAX_PREFETCH

    async def start(self) -> None:
        pass

    async def probe(self, *_: Any, **__: Any) -> Probe:
        return _PROBE

    async def close(self) -> None:
        pass


if __name__ == "__main__":
    with patch.object(worker.resources, "DecoderPool", StubDecoderPool):
        run(load())
