"""The bounds of requests: heads, parameters, JSON, forms, connections and the time that each may take."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from service.api.app import create_app
from service.config.settings import Settings
from service.downloads.client import MAX_URL_LENGTH
from service.errors import CATALOGUE
from service.http import server
from service.http.bodies import (
    MAX_FIELD_BYTES,
    MAX_FIELDS,
    MAX_FORM_LINE_BYTES,
    MAX_JSON_BYTES,
    MAX_LINES_AROUND_PARTS,
    MAX_PART_HEADERS,
)
from service.http.server import Runner
from service.http.write_stalls import WRITE_STALL_TIMEOUT_S
from service.ids import MAX_IDS
from service.images.tag_rules import MAX_TAG_LENGTH, MAX_TAGS
from tests.conftest import Client, Tenant
from tests.support.api import error_of
from tests.support.raw_http import exchange
from tests.support.samples import jpeg, stored_files

FORM = {"Content-Type": "multipart/form-data; boundary=xyz"}
FILE = b'--xyz\r\nContent-Disposition: form-data; name="f"; filename="f.jpg"\r\n'


def test_limits_are_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    section = page.partition("\n## Limits\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|", section, re.MULTILINE))
    for row, limit in {
        "Request line; each header": f"{server.MAX_LINE_BYTES} bytes",
        "Headers of a request": str(server.MAX_HEADERS),
        "Ids in one request": str(MAX_IDS),
        "Tags in one request, and of an image": f"{MAX_TAGS} of {MAX_TAG_LENGTH} characters",
        "A picture's URL": f"{MAX_URL_LENGTH} characters",
        "Fields of a form beside its file": f"{MAX_FIELDS}, and {MAX_FIELD_BYTES} bytes of all, headers included",
        "Headers of a form's file, and of a field": f"{MAX_PART_HEADERS} of {server.MAX_LINE_BYTES} bytes",
        "Lines of a form before and after its parts": f"{MAX_LINES_AROUND_PARTS} of {MAX_FORM_LINE_BYTES} bytes",
    }.items():
        assert rows[row] == limit
    [json_row] = [limit for row, limit in rows.items() if row == "A JSON body"]
    assert json_row.startswith(f"{MAX_JSON_BYTES} bytes,")
    [time_row] = [limit for row, limit in rows.items() if row.startswith("Time until the head of a request")]
    assert time_row == f"{server.KEEPALIVE_S} s"
    [stall_row] = [limit for row, limit in rows.items() if row.startswith("Time in which a client reads nothing")]
    assert stall_row == f"{WRITE_STALL_TIMEOUT_S} s"
    assert f"raised to {server.MAX_DESCRIPTORS} if" in rows["Connections of one process"]
    for name in re.findall(r"`DAGUERRE_(\w+)`", "".join(rows.values())):
        assert name.lower() in Settings.model_fields
    assert set(re.findall(r"`([a-z]+-[a-z-]+|busy)`", section.partition("| --- |")[2])) <= set(CATALOGUE)


async def send(port: int, line: str, *headers: str) -> tuple[int, str]:
    """Returns the status and the error's code, or "" for a success."""
    head = "\r\n".join([f"{line} HTTP/1.1", "Host: x", *headers])
    status, _, body = await exchange(port, f"{head}\r\n\r\n".encode())
    return status, json.loads(body).get("error", {}).get("code", "")


async def test_request_line_length_is_bounded(port: int) -> None:
    length = server.MAX_LINE_BYTES - len("/healthz?x=")
    assert await send(port, f"GET /healthz?x={'y' * length}") == (200, "")
    assert await send(port, f"GET /healthz?x={'y' * (length + 1)}") == (400, "bad-request")


async def test_header_length_is_bounded(port: int) -> None:
    assert await send(port, "GET /healthz", f"X-Long: {'y' * (server.MAX_LINE_BYTES - 100)}") == (200, "")
    assert await send(port, "GET /healthz", f"X-Long: {'y' * (server.MAX_LINE_BYTES + 1)}") == (400, "bad-request")


async def test_number_of_headers_is_bounded(port: int) -> None:
    def headers(count: int) -> list[str]:
        return [f"X-{number}: y" for number in range(count)]

    assert await send(port, "GET /healthz", *headers(server.MAX_HEADERS - 2)) == (200, "")
    assert await send(port, "GET /healthz", *headers(server.MAX_HEADERS + 1)) == (400, "bad-request")


async def test_a_thousand_parameters_are_parsed_quickly(port: int, tenant: Tenant) -> None:
    query = "&".join(["tags=a"] * 1100)
    began = time.process_time()
    assert (await send(port, f"GET /v1/images/search?{query}", f"X-Api-Key: {tenant.key}"))[0] == 200
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (f"/v1/images/search?tags={','.join(f't{number}' for number in range(MAX_TAGS + 1))}", "invalid-parameter"),
        (f"/v1/images/search?tags={'t' * (MAX_TAG_LENGTH + 1)}", "invalid-parameter"),
        (f"/v1/images/search?cursor={'c' * 7000}", "invalid-parameter"),
        (f"/v1/images/search?created_after={'2' * 7000}", "invalid-parameter"),
        ("/v1/images/search?limit=101", "invalid-parameter"),
        (f"/v1/images/{','.join(f'AAAAA{number:02}' for number in range(MAX_IDS + 1))}/delete", "invalid-id"),
        (f"/v1/images/{'A' * 7000}", "invalid-id"),
        (f"/v1/images?url=http://x/{'y' * MAX_URL_LENGTH}", "invalid-url"),
    ],
    ids=lambda value: value[:30],
)
async def test_parameters_are_bounded(api: Client, tenant: Tenant, path: str, code: str) -> None:
    assert (await error_of(await api.get(path, headers=tenant.headers)))[:2] == (400, code)


@pytest.mark.parametrize(
    "body",
    [
        b'{"url": "' + b"x" * MAX_JSON_BYTES + b'"}',
        b"[" * 60_000,
        b'{"tags":' + b"[" * 60_000,
        b'{"tags": [' + b'"a",' * 10_000 + b'"b"]}',
        b'{"tags": ["' + b"a" * 60_000 + b'"]}',
    ],
    ids=["large", "deep", "deep in a field", "many", "long"],
)
async def test_json_size_and_depth_are_bounded(api: Client, tenant: Tenant, body: bytes) -> None:
    async def chunked() -> AsyncIterator[bytes]:
        yield body

    for data in (body, chunked()):
        began = time.process_time()
        response = await api.post(
            "/v1/images", data=data, headers=tenant.headers | {"Content-Type": "application/json"}
        )
        assert (await error_of(response))[0] in (400, 413)
        assert time.process_time() - began < 1


@pytest.mark.usefixtures("worker")
async def test_form_may_have_a_short_preamble(api: Client, tenant: Tenant) -> None:
    body = b"\r\n" * 5 + FILE + b"\r\n" + jpeg() + b"\r\n--xyz--\r\nthe end\r\n"
    response = await api.post("/v1/images", data=body, headers=tenant.headers | FORM)
    assert response.status == 200


FIELD = b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n'
EMPTY_FILE = FILE.replace(b"f.jpg", b"") + b"Content-Type: application/octet-stream\r\n\r\n\r\n"
OVERSIZED = {
    "lines before the file": b"\r\n" * (MAX_LINES_AROUND_PARTS + 1) + FILE + b"\r\n" + jpeg() + b"\r\n--xyz--\r\n",
    "20 MB of lines": b"\r\n" * 10_000_000,
    "a line without end": b"y" * 20_000_000,
    "headers of a part": FILE + b"X: y\r\n" * MAX_PART_HEADERS + b"\r\n" + jpeg() + b"\r\n--xyz--\r\n",
    "20 MB of a part's headers": FILE + b"X: y\r\n" * 3_000_000,
    "a long header of a part": FILE + b"X: " + b"y" * 20_000_000,
    "33 fields": FIELD * 33 + FILE + b"\r\n" + jpeg() + b"\r\n--xyz--\r\n",
    "33 fields after the file": FILE + b"\r\n" + jpeg() + b"\r\n" + FIELD * 33 + b"--xyz--\r\n",
    "33 empty files": EMPTY_FILE * 33 + b"--xyz--\r\n",
    "20 MB of a field": FIELD.replace(b"b", b"b" * 20_000_000) + b"--xyz--\r\n",
    "fields of 70 KB": FIELD.replace(b"b", b"b" * 35_000) * 2 + FILE + b"\r\n" + jpeg() + b"\r\n--xyz--\r\n",
    "70 KB of headers of fields": FIELD.replace(b"\r\n\r\n", b"\r\nX: " + b"x" * 7000 + b"\r\n\r\n") * 10,
    "two files": (FILE + b"\r\n" + jpeg() + b"\r\n") * 2 + b"--xyz--\r\n",
    "a thousand fields": FIELD * 1000 + b"--xyz--\r\n",
    "forms within forms": b"--xyz\r\nContent-Type: multipart/mixed; boundary=xyz\r\n\r\n" * 1000,
}


@pytest.mark.slow
@pytest.mark.parametrize("case", OVERSIZED)
async def test_oversized_form_is_refused_cheaply(port: int, tenant: Tenant, settings: Settings, case: str) -> None:
    body = OVERSIZED[case]
    head = (
        f"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM['Content-Type']}\r\n"
        f"X-Api-Key: {tenant.key}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    spent = time.process_time()
    status, response = await post(port, head + body)
    spent = time.process_time() - spent
    assert (status, response["error"]["code"]) == (400, "invalid-body")
    assert spent < 1, f"{spent:.1f} s of processor time"
    assert stored_files(settings) == []


async def post(port: int, request: bytes) -> tuple[int, Any]:
    """Reads the response while the request is being sent, since the server may not read all of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(20):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        body = await reader.readexactly(int(head.split("content-length: ")[1].split()[0]))
        if "connection: close" in head:
            assert await reader.read() == b""  # after the rest of the body was dropped
    writer.close()
    return int(head.split()[1]), json.loads(body)


@pytest.mark.settings(upload_idle_timeout_s=30, upload_timeout_s=0.5)
async def test_trickling_body_times_out(api: Client, tenant: Tenant) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x"
            await asyncio.sleep(0.05)

    began = time.monotonic()
    response = await api.post(
        "/v1/images", data=trickle(), headers=tenant.headers | {"Content-Type": "application/octet-stream"}
    )
    assert (await error_of(response))[:2] == (408, "upload-timeout")
    assert 0.4 < time.monotonic() - began < 5


@pytest.fixture
async def impatient_port(settings: Settings) -> AsyncIterator[int]:
    """A server that waits half a second for a request's head, instead of `KEEPALIVE_S`."""
    runner = Runner(create_app(settings), access_log=None, keepalive_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@pytest.mark.parametrize("before", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["first", "second"])
@pytest.mark.parametrize("head", [b"", b"G", b"GET /healthz HTTP/1.1\r\nX-Slow: " + b"y" * 200])
async def test_incomplete_head_times_out(impatient_port: int, before: bytes, head: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", impatient_port)
    if before:
        writer.write(before)
        await reader.readuntil(b'{"status": "ok"}')

    async def drip() -> None:
        for number in range(len(head)):
            writer.write(head[number : number + 1])
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    began = time.monotonic()
    async with asyncio.timeout(10):
        with suppress(ConnectionResetError):  # a byte arrived after the end
            assert await reader.read() == b""
    assert 0.4 < time.monotonic() - began < 4
    dripping.cancel()
    writer.close()


def test_connections_fit_into_the_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        raised = server.raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == raised == min(hard, server.MAX_DESCRIPTORS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    settings = Settings(uploads_in_flight=256, downloads_in_flight=32, database_connections=10)
    assert server.max_connections(settings, 4096) == (4096 - 256 - 64 - 10 - 64) // 3
    assert server.max_connections(settings, 256) == 64
