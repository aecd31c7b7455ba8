"""A decoder that exits when it gets a file with the bytes `CRASH`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from worker.sandbox import decoder_main
from worker.sandbox.messages import Request, Result

CRASH = b"crash"
EXIT_CODE = 3

_handle = decoder_main.handle


def handle(request: Request, files: Sequence[int]) -> Result:
    if os.pread(files[0], len(CRASH) + 1, 0) == CRASH:
        os._exit(EXIT_CODE)
    return _handle(request, files)


if __name__ == "__main__":
    decoder_main.handle = handle
    decoder_main.main()
