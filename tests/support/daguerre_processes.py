"""Daguerre as it is run: API processes on one listening socket and workers, each a process of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from service.config.settings import Settings
from service.launcher.process import Program, end_orphans, start
from tests.support.processes import processes
from tests.support.waiting import until

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Part:
    """One process; all that it and its children print goes to `log`."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def is_alive(self) -> bool:
        return self.process.poll() is None

    async def exit_code(self) -> int:
        await until(lambda: not self.is_alive())
        return self.process.wait()

    async def wait_logged(self, event: str, times: int = 1) -> None:
        """Returns when the event is in its log that many times. Fails if the process ends before."""
        await until(lambda: self.log.read_text().count(f'"{event}"') >= times or not self.is_alive())
        assert self.log.read_text().count(f'"{event}"') == times, self.log.read_text()

    def read_events(self) -> list[dict[str, Any]]:
        """Returns the lines of its log; the last one may still be being written, and is left out then."""
        lines = self.log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]

    def count_requests(self, **fields: object) -> int:
        """Returns the number of request lines with these fields. A line may be written after its response is sent."""
        return sum(line.items() >= fields.items() for line in self.read_events() if line["event"] == "request")

    async def wait_requests(self, times: int, **fields: object) -> None:
        """Returns when that many request lines have these fields."""
        await until(lambda: self.count_requests(**fields) >= times)

    def children(self, words: str = "worker.sandbox.child_main") -> list[int]:
        found = processes()
        return [pid for pid, (parent, _, args) in found.items() if parent == self.pid and words in args]

    def has_open(self, path: Path) -> bool:
        return _has_open(self.pid, path)


def stop_process(pid: int) -> None:
    """Suspends a process. Returns when it stands still."""
    os.kill(pid, signal.SIGSTOP)
    while processes()[pid][1] != "T":
        time.sleep(0.001)


async def catch_child(worker: Part, picture: Path) -> int:
    """Suspends the child of `worker` that decodes `picture`, which must take a while, and returns its pid."""

    def caught() -> int | None:
        for pid in worker.children():
            if _has_open(pid, picture):
                stop_process(pid)
                assert _has_open(pid, picture), "the picture was decoded too soon"
                return pid
        return None

    return int(await until(caught))


def _has_open(pid: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if descriptor.readlink() == path:
                    return True
    return False


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: dict[str, Any]
    seconds: float

    @property
    def shown(self) -> Any:
        return self.body["response"]

    @property
    def code(self) -> Any:
        return self.body.get("error", {}).get("code")


@dataclass
class Client:
    """Sends its key in the query, where a careless log line would show it."""

    key: str
    session: aiohttp.ClientSession

    async def upload(self, body: bytes, **parameters: str) -> Answer:
        headers = {"Content-Type": "application/octet-stream"}
        query = {"key": self.key, **parameters}
        return await _answer(self.session.post("/v1/images", params=query, data=io.BytesIO(body), headers=headers))

    async def get(self, path: str, **parameters: str) -> Answer:
        return await _answer(self.session.get(path, params={"key": self.key, **parameters}))

    async def show(self, image_id: str, **parameters: str) -> Answer:
        return await self.get(f"/v1/images/{image_id}", **parameters)

    async def wait_shown(self, image_id: str, timeout_s: float = 20) -> Any:
        """Returns the image as GET shows it when it is no longer pending."""

        async def shown() -> Any:
            answer = await self.show(image_id)
            assert answer.status == 200, answer
            return None if "status" in answer.shown else answer.shown

        return await until(shown, timeout_s)


@dataclass
class Daguerre(Client):
    """Starts processes with these settings."""

    settings: Settings
    logs: Path
    listener: socket.socket
    parts: list[Part] = field(default_factory=list)
    port: int = field(init=False)

    def __post_init__(self) -> None:
        self.port = self.listener.getsockname()[1]

    def start_api(self, environment: Mapping[str, str] | None = None) -> Part:
        return self._start("serve", "--fd", str(self.listener.fileno()), environment=environment)

    def start_serve(self, processes: int, environment: Mapping[str, str] | None = None) -> Part:
        """Starts that many API processes and their supervisor. They open the port themselves."""
        self.listener.close()
        words = ("serve", "--port", str(self.port), "--processes", str(processes))
        return self._start(*words, environment=environment)

    def start_worker(self, environment: Mapping[str, str] | None = None) -> Part:
        return self._start("worker", environment=environment)

    async def start(self) -> tuple[Part, Part]:
        """Starts one API process and one worker. Returns when /readyz reports that they work together."""
        api, worker = self.start_api(), self.start_worker()
        await worker.wait_logged("worker.started")
        await self.wait_ready()
        return api, worker

    async def list_unavailable(self) -> set[str]:
        """Returns the names of the failing checks of /readyz. Asserts that /healthz is 200 all the same."""
        assert (await self.get("/healthz")).status == 200
        answer = await self.get("/readyz")
        names = {name for name, state in answer.body["checks"].items() if state != "ok"}
        assert answer.status == (503 if names else 200)
        return names

    async def wait_ready(self, timeout_s: float = 20) -> None:
        """Returns when /readyz reports that everything works."""
        await self.wait_unavailable(timeout_s=timeout_s)

    async def wait_unavailable(self, *names: str, timeout_s: float = 20) -> None:
        """Returns when these checks of /readyz fail and no others."""

        async def are_unavailable() -> bool:
            return await self.list_unavailable() == set(names)

        await until(are_unavailable, timeout_s)

    def _start(self, *words: str, environment: Mapping[str, str] | None = None) -> Part:
        self.logs.mkdir(exist_ok=True)
        log = self.logs / f"{len(self.parts)}-{words[0]}.log"
        values = self.settings.model_dump(exclude_unset=True)
        env = {name: value for name, value in os.environ.items() if not name.startswith("DAGUERRE_")}
        program = Program(
            name=words[0],
            argv=[sys.executable, "-P", "-m", "service.cli", *words],
            env=env
            | {"PYTHONPATH": str(_ROOT)}
            | dict(environment or {})
            | {f"DAGUERRE_{name.upper()}": str(value) for name, value in values.items()},
            pass_fds=() if self.listener.fileno() < 0 else (self.listener.fileno(),),
            log=log,
            death_signal=signal.SIGKILL,
        )
        part = Part(start(program), log)
        self.parts.append(part)
        return part

    @contextlib.asynccontextmanager
    async def connect(self, *, keep_alive: bool) -> AsyncIterator[Client]:
        """Yields a client with one connection at a time."""
        async with _session(self.listener, aiohttp.TCPConnector(limit=1, force_close=not keep_alive)) as session:
            yield Client(self.key, session)


async def _answer(request: contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]) -> Answer:
    began = time.monotonic()
    async with request as response:
        body = await response.json()
        return Answer(response.status, dict(response.headers), body, time.monotonic() - began)


def _session(listener: socket.socket, connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    host, port = listener.getsockname()
    return aiohttp.ClientSession(f"http://{host}:{port}", connector=connector, timeout=aiohttp.ClientTimeout(total=30))


@contextlib.asynccontextmanager
async def processes_of(settings: Settings, key: str, logs: Path) -> AsyncIterator[Daguerre]:
    """Kills all processes at the end of the block, then checks that no log contains the key."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        async with _session(listener, aiohttp.TCPConnector(limit=0, force_close=True)) as session:
            daguerre = Daguerre(key, session, settings, logs, listener)
            try:
                yield daguerre
            finally:
                for part in daguerre.parts:
                    part.process.kill()
                    part.process.wait()
                    end_orphans(part.process)
    texts = {part.log: part.log.read_text() for part in daguerre.parts}
    # A process that was killed while it started has written nothing.
    assert any(re.search(r"api\.listening|worker\.started", text) for text in texts.values()), "no log of a process"
    for log, text in texts.items():
        assert key[:10] not in text, f"{log} contains the key"
