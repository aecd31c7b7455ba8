"""Runs `daguerre up` as a process, with all processes that it starts."""

from __future__ import annotations

import contextlib
import http.client
import os
import pty
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tests.support.processes import processes
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]


@dataclass
class Up:
    """A running `daguerre up` on a free port."""

    process: subprocess.Popen[bytes]
    log: Path
    data: Path

    @property
    def key(self) -> str:
        return (self.data / "first-key").read_text().strip()

    @property
    def text(self) -> str:
        return self.log.read_text()

    def find(self, pattern: str) -> str:
        """Returns the first group of the pattern in its output. Fails if there is no match."""
        match = re.search(pattern, self.text)
        assert match, self.text
        return match[1]

    @property
    def sample(self) -> Path:
        return Path(shlex.split(self.find(r"--data-binary (.+)"))[0].removeprefix("@"))

    def parts(self) -> dict[int, str]:
        """Returns the command lines of all descendant processes by pid."""
        table = processes()
        descendants = {self.process.pid}
        for _ in range(4):
            descendants |= {pid for pid, (parent, _, _) in table.items() if parent in descendants}
        return {pid: args for pid, (_, _, args) in table.items() if pid in descendants - {self.process.pid}}

    def get(self, path: str, body: bytes | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", int(self.find(r"http://127.0.0.1:(\d+)")), timeout=10)
        with contextlib.closing(connection):
            headers = {"Content-Type": "image/jpeg"} if body else {}
            connection.request("POST" if body else "GET", path, body, headers)
            response = connection.getresponse()
            return response.status, response.read().decode()


@contextlib.contextmanager
def terminal(log: Path) -> Iterator[int]:
    """Yields the descriptor of a terminal whose output is written to the log."""
    ours, theirs = pty.openpty()
    file = log.open("wb", buffering=0)  # here, so that nobody reads what an earlier run wrote

    def copy() -> None:
        with file, contextlib.suppress(OSError):  # EIO at the end
            while chunk := os.read(ours, 4096):
                file.write(chunk)

    copying = threading.Thread(target=copy)
    copying.start()
    try:
        yield theirs
    finally:
        os.close(theirs)
        copying.join(20)
        os.close(ours)


@contextlib.contextmanager
def up(
    data: Path,
    *options: str,
    env: Mapping[str, str] = MappingProxyType({}),
    ready: bool = True,
    on_terminal: bool = False,
) -> Iterator[Up]:
    """Runs `daguerre up` with the variables `env` within the block. Stops it with SIGTERM at the end."""
    log = data.with_suffix(".log")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DAGUERRE_")}
    with terminal(log) if on_terminal else log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "up", "--port", "0", "--data", str(data), *options],
            cwd=ROOT,
            env={**inherited, "PYTHONPATH": str(ROOT), **env},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        running = Up(process, log, data)
        try:
            if ready:
                wait_for(lambda: "Press Ctrl-C to stop" in running.text or process.poll() is not None, 60)
                assert process.poll() is None, running.text
            yield running
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(20)
