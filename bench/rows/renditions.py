"""Renditions 300 pixels wide: uncached, cached, and 500 concurrent requests for one.

Uncached renditions are compared with sharp and thumbor, cached ones with bare aiohttp. 500 concurrent requests for one
rendition must render it once.
"""

from __future__ import annotations

import asyncio
import io
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import aiohttp
from PIL import Image

from bench import turns, wrk
from bench.photographs import SIZES, photograph
from bench.rows.reads import upload_all
from bench.rows.uploads import CONNECTIONS
from bench.targets import BARE, DAGUERRE, SHARP, THUMBOR, Target, comparator, daguerre
from service.launcher.embedded.postgres import Postgres

IN_FLIGHT = (4, 16)
IMAGES = 20
REQUESTS = 500
MAX_CPU_OF_SHARP, MIN_RATE_OF_THUMBOR, MIN_RATE_OF_BARE = 1.1, 5.0, 0.6
_WIDTH, _HEIGHT = 300, 225
_QUERY = f"width={_WIDTH}&format=jpeg&quality=80"
# The background is part of the cache key but does not change a photograph, so every request renders the same pixels.
_UNCACHED = f"{_QUERY}&background={wrk.FRESH}"
_UNLIMITED = {"DAGUERRE_RENDITION_RATE_LIMIT": ""}
_TIMEOUT_S = 60


def run(
    folder: Path,
    *,
    rounds: int,
    seconds: float,
    sizes: Sequence[str],  # noqa: ARG001 - one size
    only: Sequence[str] = ("",),
) -> None:
    picture = photograph("m")
    prefixes = tuple(only)
    in_flight = [connections for connections in IN_FLIGHT if f"uncached, {connections} in flight".startswith(prefixes)]
    if in_flight:
        _measure_uncached(folder / "uncached", picture, rounds, seconds, in_flight)
    if "cached".startswith(prefixes):
        _measure_cached(folder / "cached", picture, rounds, seconds)
    if "at once".startswith(prefixes):
        _measure_concurrent(folder / "concurrent", picture, rounds)


def _measure_uncached(folder: Path, picture: bytes, rounds: int, seconds: float, in_flight: Sequence[int]) -> None:
    with (
        daguerre(folder, env=_UNLIMITED) as ours,
        comparator(SHARP, folder, None) as sharp,
        comparator(THUMBOR, folder, None) as thumbor,
    ):
        ids = upload_all(ours, picture, IMAGES)
        paths = {
            DAGUERRE: [f"/i/{image_id}?{_UNCACHED}" for image_id in ids],
            SHARP: [f"/i/{name}?width={_WIDTH}" for name in _write_pictures(sharp, picture, IMAGES)],
            THUMBOR: [f"/unsafe/{_WIDTH}x0/{name}.jpg" for name in _write_pictures(thumbor, picture, IMAGES)],
        }
        targets = [ours, sharp, thumbor]
        body_bytes = ", ".join(
            f"{target.name} {len(_fetch(target, paths[target.name][0].replace(wrk.FRESH, 'fff')))}"
            for target in targets
        )
        for connections in in_flight:
            renders = _count_renders(ours)
            first, *others = turns.measure(
                targets,
                lambda target: wrk.Requests(paths[target.name], [], jpeg=True),
                connections=connections,
                seconds=seconds,
                rounds=rounds,
            )
            _require_renders(_count_renders(ours) - renders, first)
            turns.print_table(
                f"Uncached, {_describe(picture)}, {connections} in flight; bytes: {body_bytes}", [first, *others]
            )
            turns.print_cpu_ratio(first, others[0], MAX_CPU_OF_SHARP)
            turns.print_ratio(first, others[1], MIN_RATE_OF_THUMBOR)


def _require_renders(renders: int, series: turns.Series) -> None:
    """Raises BenchError if there were fewer renders than responses."""
    responses = sum(turn.load.requests for turn in series.turns)
    if renders < responses:
        raise wrk.BenchError(f"{responses} responses but {renders} renders: some renditions came from a cache")


def _measure_cached(folder: Path, picture: bytes, rounds: int, seconds: float) -> None:
    with (
        Postgres(folder / "pg") as postgres,
        daguerre(folder, env={**_UNLIMITED, "DAGUERRE_API_PROCESSES": "1"}) as ours,
        comparator(BARE, folder, postgres, processes=1) as bare,
    ):
        path = f"/i/{upload_all(ours, picture, 1)[0]}?{_QUERY}"
        rendition = _fetch(ours, path)
        paths = {DAGUERRE: path, BARE: f"/i/{_write_pictures(bare, rendition, 1)[0]}"}
        first, other = turns.measure(
            [ours, bare],
            lambda target: wrk.Requests([paths[target.name]], [], jpeg=True),
            connections=CONNECTIONS,
            seconds=seconds,
            rounds=rounds,
        )
        turns.print_table(
            f"Cached, {len(rendition) / 1000:.1f} KB from memory, {CONNECTIONS} connections, one process",
            [first, other],
        )
        turns.print_ratio(first, other, MIN_RATE_OF_BARE)


def _measure_concurrent(folder: Path, picture: bytes, rounds: int) -> None:
    with daguerre(folder, env=_UNLIMITED) as ours:
        image_id = upload_all(ours, picture, 1)[0]
        print(f"\n{REQUESTS} concurrent requests for an uncached rendition, {_describe(picture)}\n")
        print("| turn | responses | renders | ms until the first, the median, the last response |\n|---|---|---|---|")
        max_renders = 0
        for turn in range(1, rounds + 1):
            before = _count_renders(ours)
            path = f"/i/{image_id}?{_QUERY}&background={turn:06x}"
            responses, times_s = asyncio.run(_request_all(ours, path))
            renders = _count_renders(ours) - before
            max_renders = max(max_renders, renders)
            statuses = ", ".join(f"{number} x {status}" for status, number in sorted(responses.items()))
            percentiles = ", ".join(f"{times_s[i] * 1000:.0f}" for i in (0, len(times_s) // 2, -1))
            print(f"| {turn} | {statuses} | {renders} | {percentiles} |")
            if responses != {200: REQUESTS}:
                raise wrk.BenchError(f"not all {REQUESTS} responses were 200: {statuses}")
        turns.print_maximum(f"Renders for {REQUESTS} requests at once", max_renders, 1)


async def _request_all(target: Target, path: str) -> tuple[Counter[int], list[float]]:
    """Sends all requests at once, each on its own connection. Returns their number by status and the sorted times."""
    responses: Counter[int] = Counter()
    times_s = []
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{target.port}", connector=aiohttp.TCPConnector(limit=REQUESTS), timeout=timeout
    ) as session:
        started = time.monotonic()

        async def request() -> None:
            async with session.get(path) as response:
                await response.read()
                responses[response.status] += 1
            times_s.append(time.monotonic() - started)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(REQUESTS):
                tasks.create_task(request())
    return responses, times_s


def _write_pictures(target: Target, picture: bytes, count: int) -> list[str]:
    """Writes `count` copies of the picture for a comparator and returns their names."""
    names = [f"picture{i}" for i in range(count)]
    for name in names:
        (target.folder / f"{name}.jpg").write_bytes(picture)
    return names


def _fetch(target: Target, path: str) -> bytes:
    """Returns the body of the response. Raises BenchError if it is not a JPEG of the requested size."""
    with urllib.request.urlopen(f"http://127.0.0.1:{target.port}{path}", timeout=_TIMEOUT_S) as response:
        body: bytes = response.read()
    with Image.open(io.BytesIO(body)) as image:
        if (image.format, image.size) != ("JPEG", (_WIDTH, _HEIGHT)):
            raise wrk.BenchError(f"{target.name} responded with {image.format}, {image.size}")
    return body


def _count_renders(target: Target) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{target.port}/metrics", timeout=_TIMEOUT_S) as response:
        match = re.search(r"^daguerre_render_duration_seconds_count ([\d.]+)$", response.read().decode(), re.MULTILINE)
    return int(float(match[1])) if match else 0


def _describe(picture: bytes) -> str:
    width, height, _ = SIZES["m"]
    return f"{width} x {height}, {len(picture) // 1000} KB, to {_WIDTH} x {_HEIGHT}"
