"""200 concurrent uploads of 5 MB: none is lost. Also prints the peak memory of the processes.

`daguerre verify` compares every stored file, byte for byte.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp

from bench import turns, usage
from bench.photographs import render
from bench.rows.memory import BYTES, HEIGHT, MAX_MB, WIDTH
from bench.targets import Target, daguerre
from bench.wrk import BenchError

UPLOADS = 200
_TIMEOUT_S = 120
_CHUNK_BYTES = 1 << 18


def run(
    folder: Path,
    *,
    rounds: int,
    seconds: float,  # noqa: ARG001 - until all have a response
    sizes: Sequence[str],  # noqa: ARG001 - one size
    count: int = UPLOADS,
) -> None:
    picture = render(WIDTH, HEIGHT, BYTES)
    with daguerre(folder) as target:
        print(f"\n{count} concurrent uploads: {len(picture) / 1e6:.1f} MB each\n")
        print("| turn | responses | s | peak MB of one process so far |\n|---|---|---|---|")
        acknowledged: dict[str, str] = {}
        for turn in range(1, rounds + 1):
            started = time.monotonic()
            responses, stored = asyncio.run(_upload_all(target, picture, count))
            elapsed_s = time.monotonic() - started
            acknowledged |= stored
            statuses = ", ".join(f"{number} x {status}" for status, number in sorted(responses.items()))
            used = usage.by_part(target.roots)
            peaks = ", ".join(f"{part} {used[part].peak_mb:.0f}" for part in sorted(used))
            print(f"| {turn} | {statuses} | {elapsed_s:.1f} | {peaks} |")
        print(f"\n`daguerre verify` of the {len(acknowledged)} images: {_verify(target, acknowledged)}")
        turns.print_maximum("Peak of an API process, MB", used["api"].peak_mb, MAX_MB)


async def _upload_all(target: Target, picture: bytes, count: int) -> tuple[Counter[int], dict[str, str]]:
    """Returns the number of responses by status, and the SHA-256 of each acknowledged image by id."""
    responses: Counter[int] = Counter()
    stored: dict[str, str] = {}
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=count)
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{target.port}", connector=connector, timeout=timeout, headers={"X-Api-Key": target.key}
    ) as session:

        async def upload() -> None:
            comment = os.urandom(16)  # makes each picture unique
            head = picture[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
            headers = {"Content-Type": "image/jpeg", "Content-Length": str(len(head) + len(picture) - 2)}
            async with session.post("/v1/images", data=_body(head, picture), headers=headers) as response:
                responses[response.status] += 1
                if response.status in (200, 202):
                    image = (await response.json())["response"]
                    stored[image["id"]] = hashlib.sha256(head + picture[2:]).hexdigest()

        async with asyncio.TaskGroup() as uploads:
            for _ in range(count):
                uploads.create_task(upload())
    return responses, stored


async def _body(head: bytes, picture: bytes) -> AsyncIterator[bytes]:
    yield head
    for start in range(2, len(picture), _CHUNK_BYTES):
        yield picture[start : start + _CHUNK_BYTES]


def _verify(target: Target, expected: dict[str, str]) -> str:
    """Returns the summary of `daguerre verify`. Raises BenchError if it finds a problem."""
    expected_lines = "".join(f"{image_id} {sha256}\n" for image_id, sha256 in expected.items())
    result = subprocess.run(
        [sys.executable, "-m", "service.cli", "verify", "--expect", "-", "--data", str(target.folder)],
        input=expected_lines,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise BenchError(f"daguerre verify: {result.stdout}{result.stderr}")
    return result.stdout.splitlines()[-1]
