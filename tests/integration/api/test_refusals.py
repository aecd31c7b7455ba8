"""Invalid requests: the status and code of each, one sentence, and nothing stored."""

from __future__ import annotations

import asyncio
import io
import resource
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from PIL import Image

from service.config.settings import Settings
from service.storage.local.originals import LocalOriginals
from tests.conftest import Client, NewTenant, Tenant
from tests.support.api import error_of
from tests.support.samples import jpeg, stored_files
from tests.support.waiting import until

IMAGE = {"Content-Type": "image/jpeg"}


@pytest.fixture
def nothing_stored(settings: Settings, api: Client) -> Any:
    yield
    assert stored_files(settings) == []


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("name", ["with_exif", "verbose", "with_mini_preview", "with_account"])
@pytest.mark.parametrize("value", ["maybe", "2", "truefalse", " "])
async def test_invalid_flag_is_refused_by_name(api: Client, tenant: Tenant, name: str, value: str) -> None:
    for response in (
        await api.post("/v1/images", params={name: value}, data=jpeg(), headers=tenant.headers | IMAGE),
        await api.get("/v1/images/AAAAAAA", params={name: value}, headers=tenant.headers),
    ):
        status, code, message = await error_of(response)
        assert (status, code) == (400, "invalid-parameter")
        assert name in message


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *[(word, True) for word in ("true", "1", "YES", "on", "", None)],
        *[(word, False) for word in ("false", "0", "no", "OFF")],
    ],
)
async def test_flag_accepts_these_words(api: Client, tenant: Tenant, value: str | None, shown: bool) -> None:
    query = "verbose" if value is None else f"verbose={value}"
    response = await api.post(f"/v1/images?{query}", data=jpeg(), headers=tenant.headers | IMAGE)
    assert ("format" in (await response.json())["response"]) is shown


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize(
    "tags", [",".join(f"t{n}" for n in range(21)), "x" * 65, "a\x00b"], ids=["21", "65 characters", "control"]
)
async def test_invalid_tags_are_refused(api: Client, tenant: Tenant, tags: str) -> None:
    response = await api.post("/v1/images", params={"tags": tags}, data=jpeg(), headers=tenant.headers | IMAGE)
    status, code, message = await error_of(response)
    assert (status, code) == (400, "invalid-parameter")
    assert "tags" in message


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "application/xml"])
async def test_unsupported_content_type_is_explained(api: Client, tenant: Tenant, kind: str) -> None:
    response = await api.post("/v1/images", data=jpeg(), headers=tenant.headers | {"Content-Type": kind})
    status, code, message = await error_of(response)
    assert (status, code) == (415, "unsupported-content-type")
    assert "Content-Type: application/octet-stream" in message


@pytest.mark.parametrize(
    "key",
    [None, "", "short", "x" * 40, "\u00e9" * 40, "x" * 4000],
    ids=["none", "empty", "short", "unknown", "odd", "long"],
)
async def test_invalid_key_is_refused(api: Client, key: str | None) -> None:
    for method, path in (("POST", "/v1/images"), ("GET", "/v1/images/AAAAAAA"), ("GET", "/v1/account")):
        parameters = {} if key is None else {"key": key}
        response = await api.request(method, path, params=parameters, data=b"x" if method == "POST" else None)
        status, code, message = await error_of(response)
        assert (status, code) == (401, "unauthorized")
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
        assert not key or key not in message


@pytest.mark.parametrize("image_id", ["short", "x" * 17, "with-dash", "%00aaaaaa", "äöüäöüä"])
async def test_malformed_id_is_a_400(api: Client, tenant: Tenant, image_id: str) -> None:
    status, code, _ = await error_of(await api.get(f"/v1/images/{image_id}", headers=tenant.headers))
    assert (status, code) == (400, "invalid-id")


async def test_unknown_id_is_a_404(api: Client, tenant: Tenant) -> None:
    status, code, _ = await error_of(await api.get("/v1/images/AAAAAAA", headers=tenant.headers))
    assert (status, code) == (404, "image-not-found")


@pytest.mark.parametrize("path", ["/v2", "/v2/images", "/v1", "/v1/images/a/b/c", "/v1/image"])
async def test_unknown_path_returns_the_error_body(api: Client, path: str) -> None:
    status, code, _ = await error_of(await api.get(path))
    assert (status, code) == (404, "not-found")


async def test_wrong_method_is_a_405_with_allow(api: Client) -> None:
    response = await api.put("/v1/images")
    status, code, _ = await error_of(response)
    assert (status, code) == (405, "method-not-allowed")
    assert "POST" in response.headers["Allow"]


@pytest.mark.usefixtures("nothing_stored")
async def test_empty_body_is_refused(api: Client, tenant: Tenant) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        for chunk in (b"",):
            yield chunk

    for body in (b"", nothing()):
        status, code, _ = await error_of(await api.post("/v1/images", data=body, headers=tenant.headers | IMAGE))
        assert (status, code) == (400, "empty-body")


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.settings(max_upload=100_000)
async def test_body_over_the_limit_is_refused(api: Client, tenant: Tenant) -> None:
    async def chunked() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"x" * 10_000

    for body in (b"x" * 100_001, chunked()):
        status, code, message = await error_of(await api.post("/v1/images", data=body, headers=tenant.headers | IMAGE))
        assert (status, code) == (413, "upload-too-large")
        assert "100000" in message


@pytest.mark.usefixtures("worker")
@pytest.mark.settings(max_upload=len(jpeg()))
async def test_body_of_exactly_the_limit_is_stored(api: Client, tenant: Tenant) -> None:
    response = await api.post("/v1/images", data=jpeg(), headers=tenant.headers | IMAGE)
    assert response.status == 200


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.settings(max_upload=100_000)
async def test_declared_length_is_checked_before_the_body(api: Client, tenant: Tenant) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(
        b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 100001\r\n"
        + f"X-Api-Key: {tenant.key}\r\nExpect: 100-continue\r\n\r\n".encode()
    )
    async with asyncio.timeout(6):
        line = await reader.readline()
    writer.close()
    assert line.startswith(b"HTTP/1.1 413 ")


@pytest.mark.usefixtures("worker")
async def test_upload_with_100_continue_is_stored(api: Client, tenant: Tenant) -> None:
    body = jpeg()
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(
        b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
        + f"Content-Length: {len(body)}\r\nX-Api-Key: {tenant.key}\r\nExpect: 100-continue\r\n\r\n".encode()
    )
    async with asyncio.timeout(5):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    writer.close()


@pytest.mark.usefixtures("nothing_stored")
async def test_invalid_key_is_refused_before_100_continue(api: Client) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(
        b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 10\r\n"
        b"X-Api-Key: nonsense\r\nExpect: 100-continue\r\n\r\n"
    )
    async with asyncio.timeout(6):
        assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
    writer.close()


@pytest.mark.parametrize(
    ("method", "path", "length", "key", "status"),
    [
        ("PUT", "/v1/images/AAAAAAA/tags", 20, "nonsense", 401),
        ("DELETE", "/v1/images/AAAAAAA/tags", 20, "nonsense", 401),
        ("PUT", "/v1/images/AAAAAAA/tags", 65_537, None, 413),
        ("POST", "/v1/images", 65_537, None, 413),
    ],
)
async def test_unwanted_json_gets_no_100_continue(
    api: Client, tenant: Tenant, method: str, path: str, length: int, key: str | None, status: int
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
        f"X-Api-Key: {key or tenant.key}\r\nExpect: 100-continue\r\n\r\n".encode()
    )
    async with asyncio.timeout(6):
        assert (await reader.readline()).startswith(f"HTTP/1.1 {status} ".encode())
    writer.close()


async def test_json_with_100_continue_is_read(api: Client, tenant: Tenant) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    body = b'{"tags": ["a"]}'
    writer.write(
        b"PUT /v1/images/AAAAAAA/tags HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {len(body)}\r\nX-Api-Key: {tenant.key}\r\nExpect: 100-continue\r\n\r\n".encode()
    )
    async with asyncio.timeout(6):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.readline()).startswith(b"HTTP/1.1 404 ")
    writer.close()


async def test_key_in_json_is_redacted(api: Client, tenant: Tenant, capfd: pytest.CaptureFixture[str]) -> None:
    response = await api.post("/v1/images", json={"url": "x", tenant.key: 1}, headers=tenant.headers)
    status, code, message = await error_of(response)
    assert (status, code) == (400, "invalid-body")
    assert "[key]" in message
    out, err = capfd.readouterr()
    assert tenant.key not in message + out + err


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.settings(upload_idle_timeout_s=0.2)
async def test_stalled_body_is_a_408(api: Client, tenant: Tenant) -> None:
    async def stalling() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        await asyncio.sleep(3)
        yield b"x"

    status, code, _ = await error_of(await api.post("/v1/images", data=stalling(), headers=tenant.headers | IMAGE))
    assert (status, code) == (408, "upload-timeout")


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.settings(uploads_in_flight=1)
async def test_uploads_over_the_limit_get_retry_after(api: Client, tenant: Tenant, settings: Settings) -> None:
    hold = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * 600_000
        await hold.wait()

    first = asyncio.create_task(api.post("/v1/images", data=slow(), headers=tenant.headers | IMAGE))
    async with asyncio.timeout(5):
        while not stored_files(settings):
            await asyncio.sleep(0.01)
    response = await api.post("/v1/images", data=b"x", headers=tenant.headers | IMAGE)
    status, code, _ = await error_of(response)
    assert (status, code) == (503, "busy")
    assert response.headers["Retry-After"] == "1"
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    await until(lambda: not stored_files(settings))


@pytest.mark.usefixtures("nothing_stored")
async def test_upload_over_the_quota_is_refused(api: Client, new_tenant: NewTenant) -> None:
    full = await new_tenant(max_bytes=1000)

    async def chunked() -> AsyncIterator[bytes]:
        yield jpeg()

    assert len(jpeg()) > 1000
    for body in (jpeg(), chunked()):
        status, code, _ = await error_of(await api.post("/v1/images", data=body, headers=full.headers | IMAGE))
        assert (status, code) == (403, "quota-exceeded")


@pytest.mark.usefixtures("worker")
@pytest.mark.settings(max_pixels=1_000_000)
async def test_too_many_pixels_are_refused(api: Client, tenant: Tenant, connection: Any) -> None:
    out = io.BytesIO()
    Image.new("1", (2000, 1000)).save(out, "PNG")
    status, code, _ = await error_of(await api.post("/v1/images", data=out.getvalue(), headers=tenant.headers | IMAGE))
    assert (status, code) == (422, "too-many-pixels")
    assert await connection.fetchval("select count(*) from images") == 0


MALFORMED = {
    "no boundary": ({"Content-Type": "multipart/form-data"}, b"--x\r\n"),
    "bad part header": (
        {"Content-Type": "multipart/form-data; boundary=x"},
        b"--x\r\nBad Header\r\n\r\nabc\r\n--x--\r\n",
    ),
    "unknown transfer encoding": (
        {"Content-Type": "multipart/form-data; boundary=x"},
        (
            b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n'
            b"Content-Transfer-Encoding: rot13\r\n\r\nabc\r\n--x--\r\n"
        ),
    ),
    "quoted-printable": (
        {"Content-Type": "multipart/form-data; boundary=x"},
        (
            b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n'
            b"Content-Transfer-Encoding: Quoted-Printable\r\n\r\n=FF=D8\r\n--x--\r\n"
        ),
    ),
    "truncated form": (
        {"Content-Type": "multipart/form-data; boundary=x"},
        b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\nabc',
    ),
}


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("case", MALFORMED)
async def test_malformed_form_is_a_400(api: Client, tenant: Tenant, case: str) -> None:
    headers, body = MALFORMED[case]
    status, code, _ = await error_of(await api.post("/v1/images", data=body, headers=tenant.headers | headers))
    assert (status, code) == (400, "invalid-body")


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("size", [5_000, 100_000, 2_000_000])
async def test_full_disk_is_a_503(api: Client, tenant: Tenant, size: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a write fails with an OSError then, too
    try:
        response = await api.post("/v1/images", data=io.BytesIO(b"x" * size), headers=tenant.headers | IMAGE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    status, code, _ = await error_of(response)
    assert (status, code) == (503, "storage-unavailable")


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("size", [5_000, 600_000])
async def test_thread_exhaustion_is_a_503(
    api: Client, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", refuse)
    response = await api.post("/v1/images", data=b"x" * size, headers=tenant.headers | IMAGE)
    status, code, _ = await error_of(response)
    assert (status, code) == (503, "storage-unavailable")


_FULL_DISK = """
create function refuse_images() returns trigger language plpgsql as
    'begin raise exception ''could not extend file'' using errcode = ''disk_full''; end';
create trigger refuse_images before insert on images execute function refuse_images()
"""


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("size", [5_000, 600_000])
async def test_full_database_disk_is_a_503(api: Client, tenant: Tenant, connection: Any, size: int) -> None:
    """Keys can still be loaded, so files of images without a row would fill the storage as well."""
    await connection.execute(_FULL_DISK)
    try:
        response = await api.post("/v1/images", data=io.BytesIO(b"x" * size), headers=tenant.headers | IMAGE)
    finally:
        await connection.execute("drop function refuse_images cascade")
    status, code, _ = await error_of(response)
    assert (status, code, response.headers["Retry-After"]) == (503, "database-unavailable", "1")


async def test_concurrent_storage_checks_succeed(settings: Settings) -> None:
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    await asyncio.gather(*(storage.check() for _ in range(20)))
