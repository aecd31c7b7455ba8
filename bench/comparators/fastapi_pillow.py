"""FastAPI + Pillow + asyncpg: an upload with metadata, EXIF and a preview.

Tuned on 2 cores with 16 connections, in turns with the variant named (s, m and l are the photographs of
bench/photographs.py):

- draft(), so that libjpeg decodes at an eighth, and a box filter for the rest: s 1.1 times as fast as thumbnail()
  alone, m and l the same
- one thread that reads metadata in each of two processes: two or four threads 3 to 10 % slower, on the event loop 10 %
  slower, a child process (ProcessPoolExecutor) 10 to 20 %
- writes of 1 MB in a thread, the last one together with reading the metadata: the same as a write of each chunk on the
  event loop while the disk is idle, m up to 1.5 times as fast while it is busy. The whole body in memory: l 0.6 to 0.8
  times
- the key as a parameter instead of a dependency of the application: GET 1.1 times as fast. A dict instead of
  JSONResponse 0.85 times, FastAPI's own `max_body_size` 0.9 times, asyncpg's reset at every release 0.9 times
- no difference beyond the noise: a response model, uvicorn's headers left out, 2 to 8 connections to PostgreSQL,
  jemalloc or fewer malloc arenas
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import os
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import asyncpg
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import IFDRational
from starlette.requests import ClientDisconnect
from uvicorn.supervisors import Multiprocess

DSN, FILES, KEY = os.environ["BENCH_DSN"], Path(os.environ["BENCH_FILES"]), os.environ["BENCH_KEY"]
PORT = int(os.environ["BENCH_PORT"])
PROCESSES = int(os.environ.get("BENCH_PROCESSES", "2"))
FSYNC = bool(os.environ.get("BENCH_FSYNC"))
# With fsync the threads wait for the disk: with eight, s is 1.5 times as fast as with one.
THREADS = 8 if FSYNC else 1

MAX_BODY_BYTES = 50 << 20
WRITE_BYTES = 1 << 20
MAX_PREVIEW_BYTES = 500
PREVIEWS = [(32, 50), (32, 40), (24, 40), (16, 30)]  # pixels and quality; four of five photographs fit with the first

TABLE = """create table if not exists fastapi_pillow (
  id text primary key, width int not null, height int not null, filesize bigint not null, format text not null,
  exif jsonb not null, preview bytea not null, created timestamptz not null default now())"""
INSERT = """insert into fastapi_pillow (id, width, height, filesize, format, exif, preview)
  values ($1, $2, $3, $4, $5, $6, $7)"""
SELECT = "select id, width, height, filesize from fastapi_pillow where id = $1"


def main() -> None:
    FILES.mkdir(parents=True, exist_ok=True)
    asyncio.run(make_table())
    config = uvicorn.Config(
        "bench.comparators.fastapi_pillow:app",
        port=PORT,
        workers=PROCESSES,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
    # Like uvicorn.run(), but it listens before the line is printed.
    listener = config.bind_socket()
    listener.listen(config.backlog)
    print(f"fastapi_pillow is listening on http://127.0.0.1:{PORT}", flush=True)
    Multiprocess(config, sockets=[listener]).run()


async def make_table() -> None:
    connection = await asyncpg.connect(DSN)
    await connection.execute(TABLE)
    await connection.close()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with ThreadPoolExecutor(THREADS) as app.state.threads:
        async with asyncpg.create_pool(DSN, min_size=8, max_size=8, reset=skip_reset) as app.state.pool:
            yield


async def skip_reset(connection: Any) -> None:
    """Does nothing, because no statement changes the session."""


app = FastAPI(lifespan=lifespan)


def check_key(key: str) -> None:
    if key != KEY:
        raise HTTPException(401)


def check_size(filesize: int) -> None:
    if filesize > MAX_BODY_BYTES:
        raise HTTPException(413)


@app.post("/v1/images")
async def upload(
    request: Request, key: str = "", with_exif: bool = False, with_mini_preview: bool = False
) -> JSONResponse:
    check_key(key)
    image_id = secrets.token_urlsafe(9)
    part = FILES / f"{image_id}.part"
    run_in_thread = asyncio.get_running_loop().run_in_executor
    chunks: list[bytes] = []
    filesize = written = 0
    try:
        with part.open("wb", buffering=0) as file:
            async for chunk in request.stream():
                filesize += len(chunk)
                check_size(filesize)
                chunks.append(chunk)
                if filesize - written >= WRITE_BYTES:
                    await run_in_thread(None, file.writelines, chunks)
                    chunks, written = [], filesize
            metadata = await run_in_thread(request.app.state.threads, store, file, chunks, part)
        await request.app.state.pool.execute(
            INSERT,
            image_id,
            metadata.width,
            metadata.height,
            filesize,
            metadata.format,
            json.dumps(metadata.exif),
            metadata.preview,
        )
    except ClientDisconnect as error:
        part.unlink(missing_ok=True)
        raise HTTPException(400) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    response = {"id": image_id, "width": metadata.width, "height": metadata.height, "filesize": filesize, "tags": []}
    if with_exif:
        response["exif"] = metadata.exif
    if with_mini_preview:
        response["mini_preview"] = base64.b64encode(metadata.preview).decode()
    return JSONResponse({"success": True, "response": response})


@app.get("/v1/images/{image_id}")
async def show(request: Request, image_id: str, key: str = "") -> JSONResponse:
    check_key(key)
    row = await request.app.state.pool.fetchrow(SELECT, image_id)
    if row is None:
        raise HTTPException(404)
    return JSONResponse({"success": True, "response": {**row, "tags": []}})


@dataclass(frozen=True)
class Metadata:
    format: str
    width: int
    height: int
    exif: dict[str, Any]
    preview: bytes


def store(file: BinaryIO, chunks: list[bytes], part: Path) -> Metadata:
    """Writes the last bytes of an upload, reads its metadata and renames the file, all in one thread."""
    file.writelines(chunks)
    if FSYNC:
        os.fsync(file.fileno())
    try:
        metadata = read_metadata(part)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise HTTPException(415, "not an image") from error
    part.rename(part.with_suffix(".jpg"))
    if FSYNC:
        folder = os.open(FILES, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    return metadata


def read_metadata(path: Path) -> Metadata:
    with Image.open(path, formats=["JPEG"]) as image:
        exif = image.getexif()
        width, height = image.size
        if exif.get(ExifTags.Base.Orientation, 1) >= 5:
            width, height = height, width
        image.draft("RGB", (PREVIEWS[0][0], PREVIEWS[0][0]))  # libjpeg decodes at an eighth; thumbnail() to a quarter
        preview = make_preview(ImageOps.exif_transpose(image).convert("RGB"))
        return Metadata("jpeg", width, height, convert_exif(exif), preview)


def make_preview(image: Image.Image) -> bytes:
    for px, quality in PREVIEWS:
        image.thumbnail((px, px), Image.Resampling.BOX)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality, optimize=True)
        if out.tell() <= MAX_PREVIEW_BYTES:
            return out.getvalue()
    raise ValueError("no preview is small enough")


def convert_exif(exif: Image.Exif) -> dict[str, Any]:
    gps = {ExifTags.GPSTAGS.get(tag): value for tag, value in exif.get_ifd(ExifTags.IFD.GPSInfo).items()}
    tags = {ExifTags.TAGS.get(tag): value for tag, value in {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}.items()}
    for name, negative in (("GPSLatitude", "S"), ("GPSLongitude", "W")):
        if name in gps:
            degrees, minutes, seconds = map(float, gps[name])
            sign = -1 if gps.get(f"{name}Ref") == negative else 1
            gps[name] = sign * (degrees + minutes / 60 + seconds / 3600)
    converted = {name: to_json(value) for name, value in {**tags, **gps}.items() if name}
    return {name: value for name, value in converted.items() if value is not None}


def to_json(value: Any) -> Any:
    """Returns the value as JSON has it, or None for bytes and for infinite or undefined numbers."""
    match value:
        case str():
            return value.replace("\0", "")  # jsonb does not accept it
        case tuple():
            return [to_json(item) for item in value]
        case int():
            return value
        case float() | IFDRational():
            return float(value) if math.isfinite(value) else None
    return None


if __name__ == "__main__":
    main()
