"""A photograph 300 pixels wide: rendered for each request, from memory, and requested 500 times at once.

Uncached renditions are compared with sharp and thumbor, cached ones with bare aiohttp. 500 requests at once for one
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
MAX_OF_SHARP, MIN_OF_THUMBOR, MIN_OF_BARE = 1.1, 5.0, 0.6
_WIDTH, _HEIGHT = 300, 225
_QUERY = f"width={_WIDTH}&format=jpeg&quality=80"
# The background is part of the cache key but does not change a photograph: so each is rendered, with equal pixels.
_UNCACHED = f"{_QUERY}&background={wrk.FRESH}"
# No limit of renditions an account.
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
    wanted = tuple(only)
    in_flight = [connections for connections in IN_FLIGHT if f"uncached, {connections} in flight".startswith(wanted)]
    if in_flight:
        _make_anew(folder / "uncached", picture, rounds, seconds, in_flight)
    if "cached".startswith(wanted):
        _send_from_memory(folder / "cached", picture, rounds, seconds)
    if "at once".startswith(wanted):
        _ask_at_once(folder / "once", picture, rounds)


def _make_anew(folder: Path, picture: bytes, rounds: int, seconds: float, in_flight: Sequence[int]) -> None:
    with (
        daguerre(folder, env=_UNLIMITED) as ours,
        comparator(SHARP, folder, None) as sharp,
        comparator(THUMBOR, folder, None) as thumbor,
    ):
        ids = upload_all(ours, picture, IMAGES)
        paths = {
            DAGUERRE: [f"/i/{image_id}?{_UNCACHED}" for image_id in ids],
            SHARP: [f"/i/{name}?width={_WIDTH}" for name in _put(sharp, picture, IMAGES)],
            THUMBOR: [f"/unsafe/{_WIDTH}x0/{name}.jpg" for name in _put(thumbor, picture, IMAGES)],
        }
        targets = [ours, sharp, thumbor]
        sent = ", ".join(
            f"{target.name} {len(_fetch(target, paths[target.name][0].replace(wrk.FRESH, 'fff')))}"
            for target in targets
        )
        for connections in in_flight:
            renders = _count_renders(ours)
            first, *others = turns.take(
                targets,
                lambda target: wrk.Requests(paths[target.name], [], jpeg=True),
                connections=connections,
                seconds=seconds,
                rounds=rounds,
            )
            _require_renders(_count_renders(ours) - renders, first)
            turns.show(f"Uncached, {_of_photograph(picture)}, {connections} in flight; bytes: {sent}", [first, *others])
            turns.compare_costs(first, others[0], MAX_OF_SHARP)
            turns.compare(first, others[1], MIN_OF_THUMBOR)


def _require_renders(renders: int, series: turns.Series) -> None:
    answers = sum(turn.load.requests for turn in series.turns)
    if renders < answers:
        raise wrk.BenchError(f"{answers} answers of {renders} renders: some were not made anew")


def _send_from_memory(folder: Path, picture: bytes, rounds: int, seconds: float) -> None:
    with (
        Postgres(folder / "pg") as postgres,
        daguerre(folder, env={**_UNLIMITED, "DAGUERRE_API_PROCESSES": "1"}) as ours,
        comparator(BARE, folder, postgres, processes=1) as bare,
    ):
        path = f"/i/{upload_all(ours, picture, 1)[0]}?{_QUERY}"
        rendition = _fetch(ours, path)
        paths = {DAGUERRE: path, BARE: f"/i/{_put(bare, rendition, 1)[0]}"}
        first, other = turns.take(
            [ours, bare],
            lambda target: wrk.Requests([paths[target.name]], [], jpeg=True),
            connections=CONNECTIONS,
            seconds=seconds,
            rounds=rounds,
        )
        turns.show(
            f"Cached, {len(rendition) / 1000:.1f} KB from memory, {CONNECTIONS} connections, one process",
            [first, other],
        )
        turns.compare(first, other, MIN_OF_BARE)


def _ask_at_once(folder: Path, picture: bytes, rounds: int) -> None:
    with daguerre(folder, env=_UNLIMITED) as ours:
        image_id = upload_all(ours, picture, 1)[0]
        print(f"\n{REQUESTS} at once for a rendition that is not there, {_of_photograph(picture)}\n")
        print("| turn | answers | renders | ms until the first, the median, the last answer |\n|---|---|---|---|")
        most = 0
        for turn in range(1, rounds + 1):
            before = _count_renders(ours)
            path = f"/i/{image_id}?{_QUERY}&background={turn:06x}"
            answers, took_s = asyncio.run(_ask_all(ours, path))
            renders = _count_renders(ours) - before
            most = max(most, renders)
            statuses = ", ".join(f"{times} x {status}" for status, times in sorted(answers.items()))
            shown = ", ".join(f"{took_s[at] * 1000:.0f}" for at in (0, len(took_s) // 2, -1))
            print(f"| {turn} | {statuses} | {renders} | {shown} |")
            if answers != {200: REQUESTS}:
                raise wrk.BenchError(f"not all of {REQUESTS} were answered 200: {statuses}")
        turns.limit(f"Renders for {REQUESTS} requests at once", most, 1)


async def _ask_all(target: Target, path: str) -> tuple[Counter[int], list[float]]:
    """Sends all requests at once, each on its own connection. Returns the statuses and the times, in rising order."""
    answers: Counter[int] = Counter()
    took_s = []
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{target.port}", connector=aiohttp.TCPConnector(limit=REQUESTS), timeout=timeout
    ) as session:
        began = time.monotonic()

        async def ask() -> None:
            async with session.get(path) as response:
                await response.read()
                answers[response.status] += 1
            took_s.append(time.monotonic() - began)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(REQUESTS):
                tasks.create_task(ask())
    return answers, took_s


def _put(target: Target, picture: bytes, count: int) -> list[str]:
    """Writes files for a comparator, and returns their names."""
    names = [f"picture{i}" for i in range(count)]
    for name in names:
        (target.folder / f"{name}.jpg").write_bytes(picture)
    return names


def _fetch(target: Target, path: str) -> bytes:
    """Returns the response. Raises BenchError if it is not the photograph in the requested size."""
    with urllib.request.urlopen(f"http://127.0.0.1:{target.port}{path}", timeout=_TIMEOUT_S) as answer:
        body: bytes = answer.read()
    with Image.open(io.BytesIO(body)) as image:
        if (image.format, image.size) != ("JPEG", (_WIDTH, _HEIGHT)):
            raise wrk.BenchError(f"{target.name} answered with {image.format}, {image.size}")
    return body


def _count_renders(target: Target) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{target.port}/metrics", timeout=_TIMEOUT_S) as answer:
        found = re.search(r"^daguerre_render_duration_seconds_count ([\d.]+)$", answer.read().decode(), re.MULTILINE)
    return int(float(found[1])) if found else 0


def _of_photograph(picture: bytes) -> str:
    width, height, _ = SIZES["m"]
    return f"{width} x {height}, {len(picture) // 1000} KB, to {_WIDTH} x {_HEIGHT}"
