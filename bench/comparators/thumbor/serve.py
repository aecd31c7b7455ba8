"""Runs thumbor with the settings in thumbor.conf. It is started in its own virtual environment."""

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


class AnnouncingServer(server.HTTPServer):  # type: ignore[misc]
    """Prints a line when it listens, which thumbor does not do."""

    def bind(self, *args: Any, **options: Any) -> None:
        super().bind(*args, **options)
        print(f"thumbor is listening on http://127.0.0.1:{PORT}", flush=True)


def main() -> None:
    Path(os.environ["BENCH_FILES"]).mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    server.HTTPServer = AnnouncingServer
    # The maximum number of connections that a process accepts at a time. With the default, 128, the process that wakes
    # first accepts all, and the other is idle.
    netutil._DEFAULT_BACKLOG = 1
    conf = Path(__file__).with_name("thumbor.conf")
    server.main(["--ip", "127.0.0.1", "--port", PORT, "--processes", PROCESSES, "--conf", str(conf)])


if __name__ == "__main__":
    main()
