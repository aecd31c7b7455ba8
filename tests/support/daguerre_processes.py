"""Runs Daguerre as processes: API processes with a common listening socket, and workers."""

from __future__ import annotations

import contextlib
import io
import json
import os
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
    """One process. `log` has its output and that of its child processes."""

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
        """Returns when the event is in its log this many times. Fails if the process ends before."""
        await until(lambda: self.log.read_text().count(f'"{event}"') >= times or not self.is_alive())
        assert self.log.read_text().count(f'"{event}"') == times, self.log.read_text()

    def read_events(self) -> list[dict[str, Any]]:
        """Returns the lines of its log, without the last one if it is incomplete."""
        lines = self.log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]

    def count_requests(self, **fields: object) -> int:
        """Returns the number of log lines of requests with these fields. A line may follow after the response."""
        return sum(line.items() >= fields.items() for line in self.read_events() if line["event"] == "request")

    async def wait_requests(self, times: int, **fields: object) -> None:
        """Returns when this many log lines of requests have these fields."""
        await until(lambda: self.count_requests(**fields) >= times)

    def child_pids(self, words: str) -> list[int]:
        """Returns the child processes whose command line contains these words."""
        table = processes()
        return [pid for pid, (parent, _, args) in table.items() if parent == self.pid and words in args]

    def decoders(self) -> list[int]:
        """Returns the decoder processes of a worker."""
        return self.child_pids("worker.sandbox.decoder_main")

    def has_open(self, path: Path) -> bool:
        return _has_open(self.pid, path)


def stop_process(pid: int) -> None:
    """Suspends a process. Returns when it is suspended."""
    os.kill(pid, signal.SIGSTOP)
    while processes()[pid][1] != "T":
        time.sleep(0.001)


async def suspend_decoder(worker: Part, picture: Path) -> int:
    """Suspends the decoder of `worker` that decodes `picture` and returns its pid. Decoding it must take a while."""

    def suspend() -> int | None:
        for pid in worker.decoders():
            if _has_open(pid, picture):
                stop_process(pid)
                assert _has_open(pid, picture), "the picture was decoded too soon"
                return pid
        return None

    return int(await until(suspend))


def _has_open(pid: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if descriptor.readlink() == path:
                    return True
    return False


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: dict[str, Any]
    seconds: float

    @property
    def result(self) -> Any:
        return self.body["response"]

    @property
    def code(self) -> Any:
        return self.body.get("error", {}).get("code")


@dataclass
class Client:
    """Sends its key in the query, so that tests notice if it is logged."""

    key: str
    session: aiohttp.ClientSession

    async def upload(self, body: bytes, **parameters: str) -> Response:
        headers = {"Content-Type": "application/octet-stream"}
        query = {"key": self.key, **parameters}
        return await _receive(self.session.post("/v1/images", params=query, data=io.BytesIO(body), headers=headers))

    async def get(self, path: str, **parameters: str) -> Response:
        return await _receive(self.session.get(path, params={"key": self.key, **parameters}))

    async def show(self, image_id: str, **parameters: str) -> Response:
        return await self.get(f"/v1/images/{image_id}", **parameters)

    async def wait_processed(self, image_id: str, timeout_s: float = 20) -> Any:
        """Returns the response of GET for the image when it is no longer pending."""

        async def get_processed() -> Any:
            response = await self.show(image_id)
            assert response.status == 200, response
            return None if "status" in response.result else response.result

        return await until(get_processed, timeout_s)


@dataclass
class Daguerre(Client):
    """Starts processes with these settings. They write their logs to the folder `logs`."""

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
        """Starts a supervisor with this many API processes. They open the port themselves."""
        self.listener.close()
        words = ("serve", "--port", str(self.port), "--processes", str(processes))
        return self._start(*words, environment=environment)

    def start_worker(self, environment: Mapping[str, str] | None = None) -> Part:
        return self._start("worker", environment=environment)

    async def start(self) -> tuple[Part, Part]:
        """Starts one API process and one worker. Returns when /readyz is 200."""
        api, worker = self.start_api(), self.start_worker()
        await worker.wait_logged("worker.started")
        await self.wait_ready()
        return api, worker

    async def list_unavailable(self) -> set[str]:
        """Returns the names of the failing checks of /readyz. Asserts that /healthz is 200."""
        assert (await self.get("/healthz")).status == 200
        response = await self.get("/readyz")
        names = {name for name, state in response.body["checks"].items() if state != "ok"}
        assert response.status == (503 if names else 200)
        return names

    async def wait_ready(self, timeout_s: float = 20) -> None:
        """Returns when /readyz is 200."""
        await until(self._is_ready, timeout_s)

    async def _is_ready(self) -> bool:
        with contextlib.suppress(aiohttp.ClientConnectionError):  # it does not listen yet
            return (await self.get("/readyz")).status == 200
        return False

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
            | {f"DAGUERRE_{name.upper()}": str(value) for name, value in values.items() if value is not None},
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


async def _receive(request: contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]) -> Response:
    started = time.monotonic()
    async with request as received:
        body = await received.json()
        return Response(received.status, dict(received.headers), body, time.monotonic() - started)


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
    # A process that was killed during its start has an empty log.
    assert any(texts.values()), "all logs are empty"
    for log, text in texts.items():
        assert key[:10] not in text, f"{log} contains the key"
