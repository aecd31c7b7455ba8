"""`daguerre up` as a process of its own, with all that it starts."""

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
    """A `daguerre up` on a free port."""

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
        """Returns the first group of the pattern in what it printed."""
        match = re.search(pattern, self.text)
        assert match, self.text
        return match[1]

    @property
    def sample(self) -> Path:
        return Path(shlex.split(self.find(r"--data-binary (.+)"))[0].removeprefix("@"))

    def parts(self) -> dict[int, str]:
        """Returns the command lines of all processes below it."""
        everything = processes()
        below = {self.process.pid}
        for _ in range(4):
            below |= {pid for pid, (parent, _, _) in everything.items() if parent in below}
        return {pid: args for pid, (_, _, args) in everything.items() if pid in below - {self.process.pid}}

    def get(self, path: str, body: bytes | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", int(self.find(r"http://127.0.0.1:(\d+)")), timeout=10)
        with contextlib.closing(connection):
            headers = {"Content-Type": "image/jpeg"} if body else {}
            connection.request("POST" if body else "GET", path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()


@contextlib.contextmanager
def terminal(log: Path) -> Iterator[int]:
    """Yields the descriptor of a terminal whose output goes to the log."""
    ours, theirs = pty.openpty()

    def copy() -> None:
        with log.open("wb", buffering=0) as file, contextlib.suppress(OSError):  # EIO at the end
            while piece := os.read(ours, 4096):
                file.write(piece)

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
    """Runs `daguerre up` with the variables `env` for the length of a block, which ends it with SIGTERM."""
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
        started = Up(process, log, data)
        try:
            if ready:
                wait_for(lambda: "Press Ctrl-C to stop" in started.text or process.poll() is not None, 60)
                assert process.poll() is None, started.text
            yield started
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(20)
