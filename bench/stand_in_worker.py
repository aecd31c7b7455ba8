"""A worker, real but for its probe: every picture has the same findings, and nobody looks at it.

What is left is what the queue, the rows and the worker itself cost. Started as `daguerre worker` is, with the same
environment.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import worker.resources
from service.config.settings import load
from service.images.probe import Probe
from worker.main import run
from worker.sandbox.pool import MOST_AHEAD, Children

_FOUND = Probe("jpeg", 640, 480, 1, 1, False, {"Make": "Daguerre"}, bytes(480))


class StandIns(Children):
    """No processes; an answer at once."""

    @property
    def ahead(self) -> int:
        return MOST_AHEAD

    async def start(self) -> None:
        pass

    async def probe(self, *_: Any, **__: Any) -> Probe:
        return _FOUND

    async def end(self) -> None:
        pass


if __name__ == "__main__":
    with patch.object(worker.resources, "Children", StandIns):
        run(load())
