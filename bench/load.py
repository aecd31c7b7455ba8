"""A first look at speed: upload photographs to a running `./run up` and print what they cost.

    python -m bench.load [--data DIR] [--seconds 5] [--connections 16] [s m l]

For each size: requests a second, p50 and p99 in milliseconds, the CPU milliseconds a request of every part that `up`
started, and the most memory that one process of a part has taken since its start. The load comes from this process,
whose own CPU is printed too: where it nears a core, it is the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from bench.photographs import SIZES, photograph
from bench.usage import Usage, by_part
from service.embedded import running
from service.settings import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=list(SIZES), metavar="s m l")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    data = load(data=options.data).data
    found = running.find(data)
    if found is None:
        parser.error(f"no Daguerre is running on {data}: start it with ./run up")
    key = (data / "first-key").read_text().strip()
    address = urlsplit(found.local_url)
    target = Target(address.hostname or "127.0.0.1", address.port or 80, key)
    for size in options.sizes:
        body = photograph(size)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(attack(target, body, options.connections, 1.0))
            before = usage_by_part(found.pid)
            started = time.perf_counter()
            latencies = runner.run(attack(target, body, options.connections, options.seconds))
            elapsed = time.perf_counter() - started
        report(size, body, latencies, elapsed, before, usage_by_part(found.pid))


class Target:
    """Where to send photographs to, over connections that are kept."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self.host, self.port, self.key = host, port, key

    def request(self, body: bytes) -> bytes:
        head = (
            f"POST /v1/images?key={self.key}&with_exif=1&with_mini_preview=1 HTTP/1.1\r\nHost: {self.host}\r\n"
            f"Content-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


async def attack(target: Target, body: bytes, connections: int, seconds: float) -> list[float]:
    """Latencies in seconds; every answer is checked."""
    deadline = time.perf_counter() + seconds
    request = target.request(body)
    latencies: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(target.host, target.port)
        while (sent := time.perf_counter()) < deadline:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            answer = json.loads(await reader.readexactly(length))
            if not head.startswith(b"HTTP/1.1 200") or not answer["response"]["mini_preview"]:
                raise SystemExit(f"a wrong answer: {head.splitlines()[0].decode()} {answer}")
            latencies.append(time.perf_counter() - sent)
        writer.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    return latencies


def usage_by_part(up: int) -> dict[str, Usage]:
    """Of every process of `up`, and of this one, the load."""
    return by_part([up]) | {"load": Usage(time.process_time())}


def report(
    size: str,
    body: bytes,
    latencies: list[float],
    elapsed: float,
    before: dict[str, Usage],
    after: dict[str, Usage],
) -> None:
    latencies.sort()
    count = len(latencies)
    costs = {part: (after[part].cpu_s - before.get(part, Usage()).cpu_s) * 1000 / count for part in sorted(after)}
    print(
        f"{size} {len(body) // 1000:>5} KB  {count / elapsed:7.1f} /s"
        f"  p50 {latencies[count // 2] * 1000:7.1f} ms  p99 {latencies[int(count * 0.99)] * 1000:7.1f} ms"
        f"\n    CPU ms a request: {'  '.join(f'{part} {cost:.2f}' for part, cost in costs.items() if cost >= 0.005)}"
        f"\n    peak MB: {'  '.join(f'{part} {after[part].peak_mb:.0f}' for part in sorted(after) if part != 'load')}"
    )


if __name__ == "__main__":
    main()
