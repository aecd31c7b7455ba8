"""200 uploads of 5 MB at once, turn after turn: none is lost, and what the processes take in memory meanwhile.

`daguerre verify` checks that all are there, byte for byte.
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
_PATIENCE_S = 120
_CHUNK_BYTES = 1 << 18


def run(
    folder: Path,
    *,
    rounds: int,
    seconds: float,  # noqa: ARG001 - until all are answered
    sizes: Sequence[str],  # noqa: ARG001 - one size
    count: int = UPLOADS,
) -> None:
    picture = render(WIDTH, HEIGHT, BYTES)
    with daguerre(folder) as target:
        print(f"\n{count} uploads at once: {len(picture) / 1e6:.1f} MB each\n")
        print("| turn | answers | s | peak MB of one process so far |\n|---|---|---|---|")
        acknowledged: dict[str, str] = {}
        for turn in range(1, rounds + 1):
            began = time.monotonic()
            answers, stored = asyncio.run(_upload_all(target, picture, count))
            took_s = time.monotonic() - began
            acknowledged |= stored
            statuses = ", ".join(f"{times} x {status}" for status, times in sorted(answers.items()))
            used = usage.by_part(target.roots)
            peaks = ", ".join(f"{part} {used[part].peak_mb:.0f}" for part in sorted(used))
            print(f"| {turn} | {statuses} | {took_s:.1f} | {peaks} |")
        print(f"\n`daguerre verify` of the {len(acknowledged)} images: {_verify(target, acknowledged)}")
        turns.limit("Peak of an API process, MB", used["api"].peak_mb, MAX_MB)


async def _upload_all(target: Target, picture: bytes, count: int) -> tuple[Counter[int], dict[str, str]]:
    """How they were answered, and the SHA-256 of each image that was acknowledged."""
    answers: Counter[int] = Counter()
    stored: dict[str, str] = {}
    timeout = aiohttp.ClientTimeout(total=_PATIENCE_S)
    connector = aiohttp.TCPConnector(limit=count)
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{target.port}", connector=connector, timeout=timeout, headers={"X-Api-Key": target.key}
    ) as session:

        async def upload() -> None:
            comment = os.urandom(16)  # so that none is like another
            head = picture[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
            headers = {"Content-Type": "image/jpeg", "Content-Length": str(len(head) + len(picture) - 2)}
            async with session.post("/v1/images", data=_body(head, picture), headers=headers) as response:
                answers[response.status] += 1
                if response.status in (200, 202):
                    shown = (await response.json())["response"]
                    stored[shown["id"]] = hashlib.sha256(head + picture[2:]).hexdigest()

        async with asyncio.TaskGroup() as uploads:
            for _ in range(count):
                uploads.create_task(upload())
    return answers, stored


async def _body(head: bytes, picture: bytes) -> AsyncIterator[bytes]:
    yield head
    for start in range(2, len(picture), _CHUNK_BYTES):
        yield picture[start : start + _CHUNK_BYTES]


def _verify(target: Target, expected: dict[str, str]) -> str:
    """What it says, once no worker has anything left to look at."""
    lines = "".join(f"{image_id} {sha256}\n" for image_id, sha256 in expected.items())
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "verify", "--expect", "-", "--data", str(target.folder)],
        input=lines,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"daguerre verify: {done.stdout}{done.stderr}")
    return done.stdout.splitlines()[-1]
