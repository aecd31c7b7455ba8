"""thumbor with the settings beside this file; it runs in a virtual environment of its own."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from thumbor import server
from tornado import netutil

PORT = os.environ["BENCH_PORT"]
PROCESSES = os.environ.get("BENCH_PROCESSES", "2")


class Announced(server.HTTPServer):  # type: ignore[misc]
    """thumbor itself says nothing once it listens."""

    def bind(self, *args: Any, **options: Any) -> None:
        super().bind(*args, **options)
        print(f"thumbor is listening on http://127.0.0.1:{PORT}", flush=True)


def main() -> None:
    Path(os.environ["BENCH_FILES"]).mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    server.HTTPServer = Announced
    # Connections that a process accepts at a time: with 128 of them the first that wakes takes all there are, and the
    # other has nothing to do.
    netutil._DEFAULT_BACKLOG = 1
    conf = Path(__file__).with_name("thumbor.conf")
    server.main(["--ip", "127.0.0.1", "--port", PORT, "--processes", PROCESSES, "--conf", str(conf)])


if __name__ == "__main__":
    main()
