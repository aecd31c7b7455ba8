"""The metadata of an image by its id, with one process each: compared with bare aiohttp and with FastAPI."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Sequence
from pathlib import Path

import asyncpg

from bench import turns, wrk
from bench.photographs import SIZES, photograph
from bench.rows.uploads import CONNECTIONS
from bench.targets import BARE, DAGUERRE, FASTAPI, Target, comparator, daguerre
from service.launcher.embedded.postgres import Postgres

IMAGES = 200
GOALS = {BARE: 0.94, FASTAPI: 1.6}
_TABLES = {BARE: "bare_aiohttp", FASTAPI: "fastapi_pillow"}

_INSERT = """insert into {table} (id, width, height, filesize, format, exif, preview)
  select 'image-' || i, $1, $2, $3, 'jpeg', '{{}}', '' from generate_series(1, $4) i"""


def run(folder: Path, *, rounds: int, seconds: float, sizes: Sequence[str]) -> None:  # noqa: ARG001 - no upload
    body = photograph("s")
    with (
        Postgres(folder / "pg") as postgres,
        daguerre(folder, env={"DAGUERRE_API_PROCESSES": "1"}) as ours,
        comparator(BARE, folder, postgres, processes=1) as bare,
        comparator(FASTAPI, folder, postgres, processes=1) as fastapi,
    ):
        ids = {DAGUERRE: upload_all(ours, body)}
        for name, table in _TABLES.items():
            asyncio.run(_insert(postgres.dsn, table, len(body)))
            ids[name] = [f"image-{i + 1}" for i in range(IMAGES)]
        first, *others = turns.measure(
            [ours, bare, fastapi],
            lambda target: read(target, ids[target.name]),
            connections=CONNECTIONS,
            seconds=seconds,
            rounds=rounds,
        )
        turns.print_table(
            f"Metadata of one of {IMAGES} images, {CONNECTIONS} connections, one process", [first, *others]
        )
        for other in others:
            turns.print_ratio(first, other, GOALS[other.target.name])


def upload_all(target: Target, body: bytes, count: int = IMAGES) -> list[str]:
    """Uploads the body `count` times and returns the ids. Raises BenchError if a response is not 200."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=60)
    ids = []
    for _ in range(count):
        connection.request("POST", f"/v1/images?key={target.key}", body, {"Content-Type": "image/jpeg"})
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise wrk.BenchError(f"the response to an upload was {response.status}: {text.decode()}")
        ids.append(json.loads(text)["response"]["id"])
    connection.close()
    return ids


async def _insert(dsn: str, table: str, filesize: int) -> None:
    width, height, _ = SIZES["s"]
    connection = await asyncpg.connect(dsn)
    await connection.execute(_INSERT.format(table=table), width, height, filesize, IMAGES)
    await connection.execute(f"analyze {table}")
    await connection.close()


def read(target: Target, ids: Sequence[str]) -> wrk.Requests:
    width, height, _ = SIZES["s"]
    space = " " if target.name == BARE else ""  # the comparator uses json.dumps, which writes spaces
    return wrk.Requests(
        paths=[f"/v1/images/{image_id}?key={target.key}" for image_id in ids],
        expected=[
            f'"success":{space}true',
            f'"width":{space}{width}',
            f'"height":{space}{height}',
            f'"tags":{space}[]',
        ],
    )
