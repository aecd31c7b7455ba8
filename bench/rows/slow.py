"""The effect of 1,000 slow clients on others: the p99 of normal requests with and without them, in turns.

Each slow client sends a byte a second. 400 of them send the body of an upload, more than two API processes accept from
one account at a time; the others send the head of a request. A client that is refused or disconnected reconnects. They
all begin some seconds before the normal requests, after which their transfers may be replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import wrk
from bench.photographs import photograph
from bench.rows.reads import read, upload_all
from bench.rows.uploads import CONNECTIONS, upload
from bench.targets import Target, daguerre
from service.limits.slots import SLOW_AFTER_S

CLIENTS = 1000
_SHARE_IN_BODY = 0.4
MAX_RATIO = 3.0
_CONNECT_TIMEOUT_S = 60


def run(
    folder: Path,
    *,
    rounds: int,
    seconds: float,
    sizes: Sequence[str],  # noqa: ARG001 - one size
    clients: int = CLIENTS,
) -> None:
    body = folder / "s.jpg"
    body.write_bytes(photograph("s"))
    with daguerre(folder) as target:
        requests = {
            "metadata": read(target, upload_all(target, body.read_bytes(), 1)),
            "uploads of 640 x 480": upload(target, body, "s"),
        }
        print(f"\n{clients} slow clients, {CONNECTIONS} normal connections\n")
        print("| requests | p99 ms without them | p99 ms with them | ratio, median (min to max) |\n|---|---|---|---|")
        for name, repeated in requests.items():
            without, with_slow = [], []
            for _ in range(rounds):
                without.append(wrk.send(repeated, target.port, connections=CONNECTIONS, seconds=seconds).p99_ms)
                with _slow_clients(target, clients):
                    with_slow.append(wrk.send(repeated, target.port, connections=CONNECTIONS, seconds=seconds).p99_ms)
            ratios = [slow / fast for slow, fast in zip(with_slow, without, strict=True)]
            ratio = statistics.median(ratios)
            print(
                f"| {name} | {statistics.median(without):.1f} | {statistics.median(with_slow):.1f} |"
                f" {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), target at most {MAX_RATIO:g}:"
                f" {'reached' if ratio <= MAX_RATIO else 'missed'} |"
            )


@contextlib.contextmanager
def _slow_clients(target: Target, count: int) -> Iterator[None]:
    """Runs the clients within the block. All are connected when it begins. Raises BenchError if they cannot connect."""
    connected, ended = threading.Semaphore(0), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_run_slow_clients(target, count, connected, ended)))
    thread.start()
    try:
        for _ in range(count):
            if not connected.acquire(timeout=_CONNECT_TIMEOUT_S):
                raise wrk.BenchError("the slow clients could not connect")
        time.sleep(SLOW_AFTER_S + 1)  # before, they are not known to be slow
        yield
    finally:
        ended.set()
        thread.join()


async def _run_slow_clients(target: Target, count: int, connected: threading.Semaphore, ended: threading.Event) -> None:
    async with asyncio.TaskGroup() as clients:
        for number in range(count):
            clients.create_task(_send_slowly(target, connected, ended, in_body=number < count * _SHARE_IN_BODY))


async def _send_slowly(
    target: Target, connected: threading.Semaphore, ended: threading.Event, *, in_body: bool
) -> None:
    head = f"POST /v1/images HTTP/1.1\r\nHost: x\r\nX-Api-Key: {target.key}\r\nContent-Type: image/jpeg\r\n".encode()
    if in_body:
        head += b"Content-Length: 1000000\r\n\r\n"
    is_first = True
    while not ended.is_set():
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", target.port)
            writer.write(head)
            if is_first:
                connected.release()
                is_first = False
            while not ended.is_set() and not writer.is_closing():
                await asyncio.sleep(1)
                writer.write(b"x")
            writer.transport.abort()
