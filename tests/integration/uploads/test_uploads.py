"""POST /v1/images: what comes back, and what is stored."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import io
import os
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

from service.config.settings import Settings
from service.ids import ImageId
from service.storage.interface import UploadFile
from service.storage.local.originals import LocalOriginals
from tests.conftest import Client, NewTenant, RunBurst, Tenant, resources_of
from tests.support.samples import insert_image, jpeg, stored_files
from tests.support.waiting import until


async def upload(api: Client, tenant: Tenant, body: bytes, **parameters: str) -> Any:
    response = await api.post(
        "/v1/images", params=parameters, data=body, headers=tenant.headers | {"Content-Type": "image/jpeg"}
    )
    return response.status, await response.json()


@pytest.mark.usefixtures("worker")
async def test_upload_response_has_the_contracts_shape(api: Client, tenant: Tenant) -> None:
    body = jpeg(640, 480)
    response = await api.post(
        f"/v1/images?key={tenant.key}", data=body, headers={"Content-Type": "application/octet-stream"}
    )
    answer = await response.json()
    assert response.status == 200, answer
    assert response.content_type == "application/json"
    image_id = answer["response"].pop("id")
    assert len(image_id) == 7
    assert image_id.isalnum()
    assert answer == {
        "success": True,
        "response": {"width": 640, "height": 480, "filesize": len(body), "tags": []},
    }


@pytest.mark.settings(wait_s=0)
async def test_upload_without_a_wait_is_enqueued(api: Client, tenant: Tenant, burst: RunBurst) -> None:
    status, answer = await upload(api, tenant, jpeg(64, 48))
    assert (status, answer["response"]["status"]) == (202, "processing")
    assert (await burst()).complete == 1


@pytest.mark.usefixtures("worker")
async def test_stored_file_equals_the_body(api: Client, tenant: Tenant, settings: Settings) -> None:
    body = jpeg(640, 480)
    _, answer = await upload(api, tenant, body, verbose="1")
    [file] = stored_files(settings)
    assert file.name == answer["response"]["id"]
    assert file.read_bytes() == body
    assert answer["response"]["sha256"] == hashlib.sha256(body).hexdigest()


@pytest.mark.usefixtures("worker")
async def test_every_detail_can_be_requested(api: Client, tenant: Tenant) -> None:
    body = jpeg(300, 200, exif={0x010F: "Daguerre", 0x0112: 6})
    status, answer = await upload(
        api,
        tenant,
        body,
        tags="animal, dog,pet,dog",
        with_exif="true",
        verbose="yes",
        with_mini_preview="on",
        with_account="",
    )
    assert status == 200, answer
    shown = answer["response"]
    preview = Image.open(io.BytesIO(base64.b64decode(shown.pop("mini_preview"))))
    assert preview.format == "JPEG"
    assert preview.height > preview.width
    image_id, created = shown.pop("id"), shown.pop("created")
    assert created.endswith("Z")
    assert shown == {
        "width": 200,
        "height": 300,
        "filesize": len(body),
        "tags": ["animal", "dog", "pet"],
        "format": "jpeg",
        "mime": "image/jpeg",
        "orientation": 6,
        "pages": 1,
        "has_alpha": False,
        "sha256": hashlib.sha256(body).hexdigest(),
        "url": f"https://img.example.com/i/{image_id}",
        "exif": {"Make": "Daguerre", "Orientation": 6},
        "account": {
            "num_images": 1,
            "storage": {
                "max": 2147483648,
                "max_readable": "2 GB",
                "used": len(body),
                "used_readable": shown["account"]["storage"]["used_readable"],
                "remaining": 2147483648 - len(body),
                "remaining_readable": "2 GB",
            },
        },
    }


@pytest.mark.usefixtures("worker")
async def test_stored_image_equals_the_upload_response(api: Client, tenant: Tenant) -> None:
    asked = {"with_exif": "1", "verbose": "1", "with_mini_preview": "1"}
    _, stored = await upload(api, tenant, jpeg(80, 60), tags="a,b", **asked)
    image_id = stored["response"]["id"]
    full = await api.get(f"/v1/images/{image_id}", params=asked, headers=tenant.headers)
    assert await full.json() == stored
    plain = await api.get(f"/v1/images/{image_id}", headers=tenant.headers)
    shown = (await plain.json())["response"]
    assert list(shown) == ["id", "width", "height", "filesize", "tags"]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("place", ["query", "header", "bearer"])
async def test_api_key_may_be_in_three_places(api: Client, tenant: Tenant, place: str) -> None:
    parameters = {"key": tenant.key} if place == "query" else {}
    headers = {
        "query": {},
        "header": {"X-Api-Key": tenant.key},
        "bearer": {"Authorization": f"Bearer {tenant.key}"},
    }[place]
    response = await api.post(
        "/v1/images", params=parameters, data=jpeg(), headers=headers | {"Content-Type": "image/jpeg"}
    )
    assert response.status == 200


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("field", ["file", "image", "whatever"])
async def test_form_with_one_file_is_an_upload(api: Client, tenant: Tenant, settings: Settings, field: str) -> None:
    body = jpeg(100, 50)
    form = aiohttp.FormData()
    form.add_field(field, body, filename="holiday.jpg", content_type="image/jpeg")
    response = await api.post("/v1/images", data=form, headers=tenant.headers)
    answer = await response.json()
    assert response.status == 200, answer
    assert answer["response"]["filesize"] == len(body)
    assert [file.read_bytes() for file in stored_files(settings)] == [body]


NAMED = 'form-data; name="file"'


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
@pytest.mark.filterwarnings("ignore::aiohttp.BadContentDispositionHeader", "ignore::aiohttp.BadContentDispositionParam")
@pytest.mark.parametrize(
    ("disposition", "content_type"),
    [
        *((NAMED, kind) for kind in ("Image/PNG", "image/jpeg;q=1", " IMAGE/JPEG ; name=x", "image/*")),
        *((NAMED, kind) for kind in ("application/octet-stream; charset=binary", "Application/Octet-Stream")),
        *((NAMED, kind) for kind in (None, "", "text/plain")),
        (None, "image/jpeg"),
        (f"{NAMED}; filename=a.jpg", None),
        (f'{NAMED}; filename=""', ""),
        (f'{NAMED}; filename="na\u00efve;b.jpg"', "text/plain; charset=UTF-8"),
        (f"{NAMED}; filename*=UTF-8''na%C3%AFve.jpg", None),
        (f"{NAMED}; filename*=na.jpg", None),
        (f"{NAMED}; filename=my photo (1).jpg", None),
        (f'{NAMED}; filename="a.jpg";', None),
        (f'{NAMED}; filename*0="a"; filename*1=".jpg"', None),
        (f"{NAMED}; filename*0*=UTF-8''na%C3%AF", None),
        ('filename="a.jpg"', None),
        ('FORM-DATA;FileName="a.jpg";Name=f', None),
    ],
)
async def test_form_of_every_client_is_an_upload(
    api: Client, tenant: Tenant, disposition: str | None, content_type: str | None
) -> None:
    headers = {"Content-Disposition": disposition, "Content-Type": content_type}
    response = await post_form(api, tenant, headers, jpeg())
    assert response.status == 200, await response.text()


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b'\n<?xml version="1.0"?>\n'])
@pytest.mark.parametrize("content_type", [None, "text/plain", "text/xml"])
async def test_svg_without_a_file_name_is_an_upload(
    api: Client, tenant: Tenant, content_type: str | None, before: bytes
) -> None:
    body = before + b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>'
    response = await post_form(api, tenant, {"Content-Disposition": NAMED, "Content-Type": content_type}, body)
    assert response.status in {200, 415}, await response.text()  # XML has no blank before its declaration
    assert (response.status == 200) == (before[:1] != b"\n")


@pytest.mark.parametrize("disposition", [NAMED, 'form-data; name="; filename=x"', f'{NAMED}; note="; filename=\\"'])
async def test_form_without_a_file_is_refused(api: Client, tenant: Tenant, disposition: str) -> None:
    response = await post_form(api, tenant, {"Content-Disposition": disposition}, b"dog")
    assert (response.status, (await response.json())["error"]["code"]) == (400, "empty-body")


async def post_form(api: Client, tenant: Tenant, headers: dict[str, str | None], body: bytes) -> Any:
    """A form of one part with these headers, written byte by byte."""
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value is not None)
    return await api.post(
        "/v1/images",
        data=b"--=_1 (2)\r\n" + head.encode() + b"\r\n" + body + b"\r\n--=_1 (2)--\r\n",
        headers=tenant.headers | {"Content-Type": 'Multipart/Form-Data; charset=UTF-8; Boundary="=_1 (2)"'},
    )


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("kind", ["Image/PNG", "application/octet-stream; charset=binary", "IMAGE/*;q=1", ""])
async def test_content_type_is_read_by_its_grammar(api: Client, tenant: Tenant, kind: str) -> None:
    response = await api.post("/v1/images", data=jpeg(), headers=tenant.headers | {"Content-Type": kind})
    assert response.status == 200


async def test_form_holds_exactly_one_file(api: Client, tenant: Tenant, settings: Settings) -> None:
    two_files = aiohttp.FormData()
    two_files.add_field("a", jpeg(), filename="a.jpg")
    two_files.add_field("b", jpeg(), filename="b.jpg")
    no_file = aiohttp.FormData(default_to_multipart=True)
    no_file.add_field("tags", "dog")
    for form, code in ((two_files, "invalid-body"), (no_file, "empty-body")):
        response = await api.post("/v1/images", data=form, headers=tenant.headers)
        assert response.status == 400
        assert (await response.json())["error"]["code"] == code
    assert stored_files(settings) == []


@pytest.mark.usefixtures("worker")
async def test_long_chunked_body_is_stored_whole(api: Client, tenant: Tenant, settings: Settings) -> None:
    body = jpeg(2400, 1600, quality=95)
    assert len(body) > 2 << 20

    async def pieces() -> Any:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    response = await api.post(
        "/v1/images", data=pieces(), headers=tenant.headers | {"Content-Type": "application/octet-stream"}
    )
    assert response.status == 200
    assert [file.read_bytes() for file in stored_files(settings)] == [body]


@pytest.mark.settings(wait_s=0.2)
async def test_upload_without_a_worker_is_finished_later(
    api: Client, tenant: Tenant, settings: Settings, burst: RunBurst
) -> None:
    body = jpeg(64, 48)
    status, answer = await upload(api, tenant, body, tags="later")
    image_id = answer["response"]["id"]
    assert status == 202
    pending = {"id": image_id, "status": "processing", "filesize": len(body), "tags": ["later"]}
    assert answer["response"] == pending
    shown = await api.get(f"/v1/images/{image_id}", headers=tenant.headers)
    assert shown.status == 200
    assert (await shown.json())["response"] == pending

    assert (await burst()).complete == 1
    shown = await api.get(f"/v1/images/{image_id}", headers=tenant.headers)
    assert (await shown.json())["response"]["width"] == 64


@pytest.mark.settings(wait_s=0.2)
async def test_get_shows_why_a_pending_image_failed(
    api: Client, tenant: Tenant, settings: Settings, burst: RunBurst
) -> None:
    status, answer = await upload(api, tenant, b"not a picture at all")
    assert status == 202
    await burst()
    shown = await api.get(f"/v1/images/{answer['response']['id']}", headers=tenant.headers)
    assert shown.status == 415
    assert (await shown.json())["error"]["code"] == "unsupported-image"
    account = await (await api.get("/v1/account", headers=tenant.headers)).json()
    assert account["response"]["num_images"] == 0
    assert account["response"]["storage"]["used"] == 0


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("body", "code"),
    [(b"GIF89a then nothing of the kind", 415), (b"\x00" * 1000, 415), (jpeg(400, 300)[:-4000], 415)],
    ids=["a lie", "zeros", "a truncated jpeg"],
)
async def test_undecodable_file_leaves_nothing(
    api: Client, tenant: Tenant, settings: Settings, connection: Any, body: bytes, code: int
) -> None:
    status, answer = await upload(api, tenant, body)
    assert status == code
    assert answer["success"] is False
    assert answer["error"]["code"] in ("unsupported-image", "damaged-image")
    assert await connection.fetchval("select count(*) from images") == 0
    await until(lambda: not stored_files(settings))  # a request that has looked at the row may respond before
    await until(lambda: connection.fetchval("select count(*) = 0 from removals"))
    assert await connection.fetchval("select used_bytes from accounts where id = $1", tenant.id) == 0


@pytest.mark.usefixtures("worker")
async def test_concurrent_uploads_get_their_own_images(api: Client, tenant: Tenant) -> None:
    bodies = [jpeg(40 + number, 30) for number in range(16)]
    answers = await asyncio.gather(*(upload(api, tenant, body) for body in bodies))
    assert [answer["response"]["width"] for _, answer in answers] == [40 + number for number in range(16)]
    assert len({answer["response"]["id"] for _, answer in answers}) == 16


@pytest.mark.usefixtures("worker")
async def test_equal_bytes_are_two_images(api: Client, tenant: Tenant, settings: Settings) -> None:
    body = jpeg()
    first, second = [(await upload(api, tenant, body))[1]["response"]["id"] for _ in range(2)]
    assert first != second
    assert len(stored_files(settings)) == 2


@pytest.mark.usefixtures("worker")
async def test_image_of_another_account_is_unknown(api: Client, tenant: Tenant, new_tenant: NewTenant) -> None:
    _, answer = await upload(api, tenant, jpeg())
    stranger = await new_tenant()
    theirs = await api.get(f"/v1/images/{answer['response']['id']}", headers=stranger.headers)
    unknown = await api.get("/v1/images/AAAAAAA", headers=stranger.headers)
    assert theirs.status == unknown.status == 404
    assert await theirs.json() == await unknown.json()


async def test_batched_lookups_return_single_results(
    api: Client, tenant: Tenant, new_tenant: NewTenant, connection: Any
) -> None:
    stranger = await new_tenant()
    for number in range(5):
        await insert_image(connection, tenant, f"AAAAAA{number}", size=100 + number)
    asked = [
        (owner, image_id, detail)
        for owner in (tenant, stranger)
        for image_id in ("AAAAAA0", "AAAAAA1", "AAAAAA1", "AAAAAA4", "AAAAAA9")
        for detail in ({}, {"with_exif": "1"}, {"with_mini_preview": "1", "verbose": "1"})
    ]

    async def show(owner: Tenant, image_id: str, detail: dict[str, str]) -> tuple[int, Any]:
        response = await api.get(f"/v1/images/{image_id}", params=detail, headers=owner.headers)
        return response.status, await response.json()

    alone = [await show(*each) for each in asked]
    assert await asyncio.gather(*(show(*each) for each in asked)) == alone
    assert [status for status, _ in alone].count(200) == 12
    assert len({str(answer) for _, answer in alone}) == 10


@pytest.mark.usefixtures("worker")
async def test_request_id_follows_the_job(api: Client, tenant: Tenant, capfd: Any) -> None:
    response = await api.post(
        "/v1/images",
        data=b"no picture",
        headers=tenant.headers | {"Content-Type": "image/png", "X-Request-Id": "trace-me-1"},
    )
    assert response.headers["X-Request-Id"] == "trace-me-1"
    refused = [line for line in capfd.readouterr().out.splitlines() if "probe.refused" in line]
    assert len(refused) == 1
    assert "trace-me-1" in refused[0]


async def test_interrupted_upload_leaves_no_file(
    api: Client, tenant: Tenant, settings: Settings, tmp_path: Path
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(
        b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 900000\r\n"
        + f"X-Api-Key: {tenant.key}\r\n\r\n".encode()
        + b"x" * 600_000
    )
    await writer.drain()
    incoming = settings.storage_folder / "incoming"
    async with asyncio.timeout(5):
        while not list(incoming.iterdir()):
            await asyncio.sleep(0.01)
        writer.close()
        while list(incoming.iterdir()):
            await asyncio.sleep(0.01)


async def test_cancelled_upload_leaves_no_file(settings: Settings) -> None:
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()

    async def receive(number: int) -> None:
        async with storage.receive(ImageId(f"AAAAA{number:02}")):
            await asyncio.sleep(30)

    tasks = [asyncio.create_task(receive(number)) for number in range(20)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    assert stored_files(settings) == []


@pytest.mark.settings(wait_s=0.2, storage_disk="remote")
async def test_unpublished_images_are_stored_once(
    api: Client, tenant: Tenant, settings: Settings, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = resources_of(api)
    loop = asyncio.get_running_loop()
    in_executor = loop.run_in_executor
    refused: list[object] = []

    def refuse_once(executor: None, call: partial[Any]) -> asyncio.Future[Any]:
        if not refused and getattr(call.func, "__name__", "") == "_publish":
            refused.append(call)
            raise RuntimeError("can't start new thread")
        return in_executor(executor, call)

    monkeypatch.setattr(loop, "run_in_executor", refuse_once)
    service.ingest.ingest_batcher.wait_s = lambda: 0.1
    answers = await asyncio.gather(*(upload(api, tenant, jpeg()) for _ in range(3)))
    assert len(refused) == 1
    assert [status for status, _ in answers] == [202] * 3
    answered = {answer["response"]["id"] for _, answer in answers}
    assert {row["id"] for row in await connection.fetch("select id from images")} == answered
    assert {path.name for path in stored_files(settings)} == answered


async def receive_small(storage: LocalOriginals, image_id: str, body: bytes = b"body") -> UploadFile:
    async with storage.receive(ImageId(image_id)) as file:
        await file.finish([body])
    return file


async def test_unsynced_file_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    bad, good = await receive_small(storage, "AAAAAAA"), await receive_small(storage, "BBBBBBB")
    sync = os.fsync
    failing = [errno.EIO]

    def fail_once(fd: int) -> None:
        if failing:
            raise OSError(failing.pop(), "the disk is ill")
        sync(fd)

    monkeypatch.setattr("os.fsync", fail_once)
    for _ in range(2):  # again, as a group does whose rows could not be inserted together
        error, none = await storage.sync_batch([bad, good])
        assert error is not None
        assert (error.code, none) == ("storage-unavailable", None)
    assert [path.name for path in stored_files(settings)] == ["BBBBBBB"]


async def test_failed_upload_keeps_the_file_of_another(settings: Settings) -> None:
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    first = await receive_small(storage, "AAAAAAA", b"first")
    assert await storage.sync_batch([first]) == [None]
    second = await receive_small(storage, "AAAAAAA", b"second")
    [error] = await storage.sync_batch([second])
    assert error is not None
    await storage.discard(second)
    assert storage.incoming_path(ImageId("AAAAAAA")).read_bytes() == b"first"
    await storage.discard(first)
    assert stored_files(settings) == []
