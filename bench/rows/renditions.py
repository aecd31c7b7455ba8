"""Renditions: uncached, of 100 different photographs, cached in memory and on disk, and 500 requests at once for one.

Uncached renditions are compared with sharp and thumbor, the 100 photographs with thumbor, cached renditions with bare
aiohttp. 500 concurrent requests for one rendition must render it once.
"""

from __future__ import annotations

import asyncio
import io
import re
import statistics
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from PIL import Image

from bench import turns, wrk
from bench.photographs import SIZES, photograph, render_different
from bench.rows.reads import upload_all
from bench.rows.uploads import CONNECTIONS
from bench.targets import BARE, DAGUERRE, SHARP, THUMBOR, Target, comparator, daguerre
from service.launcher.embedded.postgres import Postgres

REQUESTS = 500
MIN_RATE_OF_BARE = 0.6
MIN_RATE_OF_DISK = 0.95  # as fast, but for the noise
MIN_RATE_OF_THUMBOR = {"uncached": 1.0, "photographs": 1.3}
_WIDTH, _HEIGHT = 300, 225
_QUERY = "format=jpeg&quality=80"
# The background is part of the cache key but does not change a photograph, so every request renders the same pixels.
_UNCACHED = f"{_QUERY}&background={wrk.FRESH}"
_UNLIMITED = {"DAGUERRE_RENDITION_RATE_LIMIT": ""}
_TIMEOUT_S = 60
# A process responds with its last scrape for a second.
_SCRAPE_REUSE_S = 1.1


@dataclass(frozen=True, slots=True)
class _Work:
    """Renditions that no cache has. `size` is that of a rendition, `source` describes the pictures.

    There is a target of the CPU time for each number of requests in flight.
    """

    name: str
    source: str
    make_pictures: Callable[[], Sequence[bytes]]
    size: tuple[int, int]
    in_flight: Sequence[int]
    comparators: Sequence[str]
    max_cpu_of_sharp: Mapping[int, float]


UNCACHED = _Work(
    name="uncached",
    source="{} x {}".format(*SIZES["m"]),
    make_pictures=lambda: [photograph("m")] * 20,
    size=(_WIDTH, _HEIGHT),
    in_flight=(4, 16),
    comparators=(SHARP, THUMBOR),
    max_cpu_of_sharp={4: 1.15, 16: 1.0},
)
PHOTOGRAPHS = _Work(
    name="photographs",
    source="100 of 2040 x 1530",
    make_pictures=lambda: list(render_different(100, 2040, 1530)),
    size=(512, 384),
    in_flight=(2, 16),
    comparators=(THUMBOR,),
    max_cpu_of_sharp={},
)


def run(
    folder: Path,
    *,
    rounds: int,
    seconds: float,
    sizes: Sequence[str],  # noqa: ARG001 - one size
    only: Sequence[str] = ("",),
    on_s3: bool = False,
) -> None:
    prefixes = tuple(only)
    for work in (UNCACHED, PHOTOGRAPHS):
        in_flight = [each for each in work.in_flight if f"{work.name}, {each} in flight".startswith(prefixes)]
        if in_flight:
            _measure_uncached(folder / work.name, work, rounds, seconds, in_flight)
    if "cached".startswith(prefixes):
        _measure_cached(folder / "cached", photograph("m"), rounds, seconds)
    if "cached on disk".startswith(prefixes):
        _measure_on_disk(folder / "disk", photograph("m"), rounds, seconds, on_s3=on_s3)
    if "at once".startswith(prefixes):
        _measure_concurrent(folder / "concurrent", photograph("m"), rounds)


def _measure_uncached(folder: Path, work: _Work, rounds: int, seconds: float, in_flight: Sequence[int]) -> None:
    pictures = work.make_pictures()
    with ExitStack() as stack:
        ours = stack.enter_context(daguerre(folder, env=_UNLIMITED))
        others = [stack.enter_context(comparator(name, folder, None)) for name in work.comparators]
        paths = {target.name: _prepare(target, pictures, work.size[0]) for target in (ours, *others)}
        kilobytes = statistics.mean(map(len, pictures)) / 1000
        size = "{} x {}".format(*work.size)
        body_bytes = ", ".join(
            f"{target.name} {statistics.mean(len(_fetch(target, path, work.size)) for path in paths[target.name]):.0f}"
            for target in (ours, *others)
        )
        for connections in in_flight:
            renders = _count_renders(ours)
            first, *series = turns.measure(
                [ours, *others],
                lambda target: wrk.Requests(paths[target.name], [], jpeg=True),
                connections=connections,
                seconds=seconds,
                rounds=rounds,
            )
            _require_renders(_count_renders(ours) - renders, first)
            turns.print_table(
                f"{work.name.capitalize()}, {work.source}, {kilobytes:.0f} KB, to {size}, {connections} in flight;"
                f" bytes: {body_bytes}",
                [first, *series],
            )
            for one in series:
                if one.target.name == SHARP:
                    turns.print_cpu_ratio(first, one, work.max_cpu_of_sharp[connections])
                else:
                    turns.print_ratio(first, one, MIN_RATE_OF_THUMBOR[work.name])


def _prepare(target: Target, pictures: Sequence[bytes], width: int) -> list[str]:
    """Gives the pictures to the target and returns the paths of their renditions."""
    if target.name == DAGUERRE:
        ids = [upload_all(target, picture, 1)[0] for picture in pictures]
        return [f"/i/{image_id}?width={width}&{_UNCACHED}" for image_id in ids]
    names = _write_pictures(target, pictures)
    if target.name == SHARP:
        return [f"/i/{name}?width={width}" for name in names]
    return [f"/unsafe/{width}x0/{name}.jpg" for name in names]


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
        path = f"/i/{upload_all(ours, picture, 1)[0]}?width={_WIDTH}&{_QUERY}"
        rendition = _fetch(ours, path, (_WIDTH, _HEIGHT))
        paths = {DAGUERRE: path, BARE: f"/i/{_write_pictures(bare, [rendition])[0]}"}
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


def _measure_on_disk(folder: Path, picture: bytes, rounds: int, seconds: float, *, on_s3: bool) -> None:
    """Cached renditions without the cache in memory: the API process finds and reads the file for each request.

    On S3 the file is a local copy. Daguerre on the disk is measured beside it.
    """
    env = {**_UNLIMITED, "DAGUERRE_API_PROCESSES": "1", "DAGUERRE_RENDITIONS_MEMORY": "1"}
    with ExitStack() as stack:
        targets = [stack.enter_context(daguerre(folder, env=env, on_s3=True))] if on_s3 else []
        targets.append(stack.enter_context(daguerre(folder, env=env)))
        paths = {target.name: f"/i/{upload_all(target, picture, 1)[0]}?width={_WIDTH}&{_QUERY}" for target in targets}
        for target in targets:
            rendition = _fetch(target, paths[target.name], (_WIDTH, _HEIGHT))
        series = turns.measure(
            targets,
            lambda target: wrk.Requests([paths[target.name]], [], jpeg=True),
            connections=CONNECTIONS,
            seconds=seconds,
            rounds=rounds,
        )
        kilobytes = len(rendition) / 1000
        turns.print_table(f"Cached on disk, {kilobytes:.1f} KB, {CONNECTIONS} connections, one process", series)
        if on_s3:
            turns.print_ratio(series[0], series[1], MIN_RATE_OF_DISK)


def _measure_concurrent(folder: Path, picture: bytes, rounds: int) -> None:
    with daguerre(folder, env=_UNLIMITED) as ours:
        image_id = upload_all(ours, picture, 1)[0]
        print(f"\n{REQUESTS} concurrent requests for an uncached rendition, {_describe(picture)}\n")
        print("| turn | responses | renders | ms until the first, the median, the last response |\n|---|---|---|---|")
        max_renders = 0
        for turn in range(1, rounds + 1):
            before = _count_renders(ours)
            path = f"/i/{image_id}?width={_WIDTH}&{_QUERY}&background={turn:06x}"
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


def _write_pictures(target: Target, pictures: Sequence[bytes]) -> list[str]:
    """Writes the pictures for a comparator and returns their names."""
    names = [f"picture{number}" for number in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        (target.folder / f"{name}.jpg").write_bytes(picture)
    return names


def _fetch(target: Target, path: str, size: tuple[int, int]) -> bytes:
    """Returns the body of the response. Raises BenchError if it is not a JPEG of this size."""
    url = f"http://127.0.0.1:{target.port}{path.replace(wrk.FRESH, 'fff')}"
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
        body: bytes = response.read()
    with Image.open(io.BytesIO(body)) as image:
        if (image.format, image.size) != ("JPEG", size):
            raise wrk.BenchError(f"{target.name} responded with {image.format}, {image.size}")
    return body


def _count_renders(target: Target) -> int:
    time.sleep(_SCRAPE_REUSE_S)
    with urllib.request.urlopen(f"http://127.0.0.1:{target.port}/metrics", timeout=_TIMEOUT_S) as response:
        match = re.search(r"^daguerre_render_duration_seconds_count ([\d.]+)$", response.read().decode(), re.MULTILINE)
    return int(float(match[1])) if match else 0


def _describe(picture: bytes) -> str:
    width, height, _ = SIZES["m"]
    return f"{width} x {height}, {len(picture) // 1000} KB, to {_WIDTH} x {_HEIGHT}"
