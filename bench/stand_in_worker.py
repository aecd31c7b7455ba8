"""A worker with a fake probe, which returns the same result for every picture without decoding it.

So a benchmark measures the queue, the rows and the worker itself. Run it like `daguerre worker`, with the same
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


class StandIns(DecoderPool):
    """No processes; an answer at once."""

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
    with patch.object(worker.resources, "DecoderPool", StandIns):
        run(load())
