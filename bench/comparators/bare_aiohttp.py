"""Bare aiohttp: writes a body to a file, reads a row, sends bytes. It has no keys, limits or middlewares.

It shows what plain handlers achieve, which is the upper bound for Daguerre's. Tuned on 2 cores with 16 connections, in
turns with the variant named (s, m and l are the photographs of bench/photographs.py):

- without asyncpg's reset, which is a round trip at every release: GET 1.5 times as fast
- writes of 1 MB in a thread, and no thread for a body that arrives in one chunk: l 1.0 to 1.3 times as fast as a write
  of each chunk on the event loop, which blocks while the disk is busy; m and s the same. Chunks in a bytearray instead
  of a list: l 0.6 times
- `request.read()`: l 0.4 times. A larger `read_bufsize`: l 0.7 times
- no difference beyond the noise: os.writev, reuse_port instead of one listening socket, 2 to 16 connections to
  PostgreSQL
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

import asyncpg
import uvloop
from aiohttp import web

DSN, FILES = os.environ["BENCH_DSN"], Path(os.environ["BENCH_FILES"])
PORT = int(os.environ["BENCH_PORT"])
PROCESSES = int(os.environ.get("BENCH_PROCESSES", "2"))
FSYNC = bool(os.environ.get("BENCH_FSYNC"))

PICTURES: dict[str, bytes] = {}

WRITE_BYTES = 1 << 20
MAX_BLOCKING_WRITE_BYTES = 1 << 16

POOL = web.AppKey("POOL", asyncpg.Pool)

TABLE = """create table if not exists bare_aiohttp (
  id text primary key, width int not null, height int not null, filesize bigint not null, format text not null,
  exif jsonb not null, preview bytea not null, created timestamptz not null default now())"""
SELECT = "select id, width, height, filesize from bare_aiohttp where id = $1"


def main() -> None:
    FILES.mkdir(parents=True, exist_ok=True)
    asyncio.run(make_table())
    listener = socket.create_server(("127.0.0.1", PORT), backlog=128)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=run, args=(listener,)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()

    def stop(*_: Any) -> None:
        for process in processes:
            process.terminate()

    signal.signal(signal.SIGTERM, stop)
    print(f"bare_aiohttp is listening on http://127.0.0.1:{PORT}", flush=True)
    for process in processes:
        process.join()


async def make_table() -> None:
    connection = await asyncpg.connect(DSN)
    await connection.execute(TABLE)
    await connection.close()


def run(listener: socket.socket) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(listener))


async def serve(listener: socket.socket) -> None:
    app = web.Application()
    app.cleanup_ctx.append(open_pool)
    app.router.add_post("/v1/images", upload)
    app.router.add_get("/v1/images/{id}", show)
    app.router.add_get("/i/{id}", send_picture)
    app.router.add_get("/plain", plain)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await stopping.wait()
    await runner.cleanup()


async def open_pool(app: web.Application) -> AsyncIterator[None]:
    async with asyncpg.create_pool(DSN, min_size=8, max_size=8, reset=skip_reset) as app[POOL]:
        yield


async def skip_reset(connection: Any) -> None:
    """Does nothing, because no statement changes the session."""


async def upload(request: web.Request) -> web.Response:
    image_id = secrets.token_urlsafe(9)
    part = FILES / f"{image_id}.part"
    run_in_thread = asyncio.get_running_loop().run_in_executor
    chunks: list[bytes] = []
    buffered = 0
    try:
        with part.open("wb", buffering=0) as file:
            async for chunk in request.content.iter_any():
                chunks.append(chunk)
                buffered += len(chunk)
                if buffered >= WRITE_BYTES:
                    await run_in_thread(None, file.writelines, chunks)
                    chunks, buffered = [], 0
            if FSYNC or buffered > MAX_BLOCKING_WRITE_BYTES:
                await run_in_thread(None, finish, file, chunks, part)
            else:
                finish(file, chunks, part)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return json_response({"id": image_id})


def finish(file: BinaryIO, chunks: list[bytes], part: Path) -> None:
    file.writelines(chunks)
    if FSYNC:
        os.fsync(file.fileno())
    part.rename(part.with_suffix(".jpg"))
    if FSYNC:
        folder = os.open(FILES, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


async def show(request: web.Request) -> web.Response:
    row = await request.app[POOL].fetchrow(SELECT, request.match_info["id"])
    if row is None:
        raise web.HTTPNotFound
    return json_response({**row, "tags": []})


async def send_picture(request: web.Request) -> web.Response:
    """Sends a file from memory, after it was read by the first request."""
    image_id = request.match_info["id"]
    body = PICTURES.get(image_id)
    if body is None:
        body = PICTURES[image_id] = (FILES / f"{image_id}.jpg").read_bytes()
    return web.Response(body=body, content_type="image/jpeg")


async def plain(_: web.Request) -> web.Response:
    return json_response({})


def json_response(content: dict[str, Any]) -> web.Response:
    body = json.dumps({"success": True, "response": content}).encode()
    return web.Response(body=body, content_type="application/json")


if __name__ == "__main__":
    main()
