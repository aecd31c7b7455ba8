"""Uploads and downloads under an Idempotency-Key, and what is stored after them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from service.api.resources import Resources
from service.config.settings import Settings
from service.ids import AccountId, ImageId
from service.images.models import IdempotencyKey, Image, NewImage
from service.images.pending import new_image_id
from service.uploads import receiving
from tests.conftest import Client, Tenant
from tests.support.samples import jpeg, stored_files
from tests.support.verify import verify
from tests.support.waiting import until

LOCAL = pytest.mark.settings(fetch_allow="127.0.0.1")
PICTURE = jpeg(64, 48)
OTHER = jpeg(30, 40)
KEY = "9f1c-4e07"


class Answer(tuple[int, Any]):
    """The status and the JSON body of a response."""

    __slots__ = ()

    @property
    def status(self) -> int:
        return self[0]

    @property
    def shown(self) -> Any:
        return self[1]["response"]

    @property
    def id(self) -> str:
        return str(self.shown["id"])

    @property
    def refusal(self) -> tuple[int, str]:
        return self[0], self[1]["error"]["code"]


async def answer(request: Awaitable[Any]) -> Answer:
    response = await request
    return Answer((response.status, await response.json()))


async def post(api: Client, tenant: Tenant, body: Any = PICTURE, *, key: str | None = KEY, **query: str) -> Answer:
    headers = tenant.headers | {"Content-Type": "image/jpeg"} | ({"Idempotency-Key": key} if key else {})
    return await answer(api.post("/v1/images", params=query, data=body, headers=headers))


async def post_form(api: Client, tenant: Tenant, body: bytes = PICTURE, *, key: str = KEY) -> Answer:
    form = aiohttp.FormData()
    form.add_field("file", body, filename="a.jpg", content_type="image/jpeg")
    return await answer(api.post("/v1/images", data=form, headers=tenant.headers | {"Idempotency-Key": key}))


async def post_url(api: Client, tenant: Tenant, url: object, *, key: str = KEY) -> Answer:
    headers = tenant.headers | {"Idempotency-Key": key}
    return await answer(api.post("/v1/images", json={"url": str(url)}, headers=headers))


async def get_url(api: Client, tenant: Tenant, url: object, *, key: str = KEY) -> Answer:
    headers = tenant.headers | {"Idempotency-Key": key}
    return await answer(api.get("/v1/images", params={"url": str(url)}, headers=headers))


class Origin:
    """Serves a picture at every path, and counts how often."""

    def __init__(self) -> None:
        self.requests = 0
        self.body = PICTURE
        self.gate = asyncio.Event()
        self.gate.set()

    async def answer(self, _: web.Request) -> web.Response:
        self.requests += 1
        await self.gate.wait()
        return web.Response(body=self.body, content_type="image/jpeg")


async def receive(service: Resources, body: bytes = PICTURE) -> receiving.Upload:
    async def chunks() -> AsyncIterator[bytes]:
        yield body

    return await receiving.receive(chunks(), service.storage, service.upload_limits)


async def store(service: Resources, tenant: Tenant) -> tuple[NewImage, Image | None]:
    """Receives and stores a picture under KEY, as the handler of uploads does."""
    upload = await receive(service)
    return await service.ingest.store(upload, tenant.id, [], IdempotencyKey(KEY), request_id="r")


def new_image(
    account_id: AccountId,
    size: int = 10,
    *,
    key: str | None = None,
    url: bytes | None = None,
    id: str = "",  # noqa: A002
) -> NewImage:
    image_id = ImageId(id) if id else new_image_id()
    return NewImage(image_id, account_id, size, bytes(32), [], IdempotencyKey(key, url) if key else None)


async def assert_one_image(settings: Settings, connection: Any, image_id: str, body: bytes = PICTURE) -> None:
    """Asserts one row and one file, counted once."""
    rows = await connection.fetch("select id, size from images where state <> 'failed'")
    assert [tuple(row) for row in rows] == [(image_id, len(body))]
    counters = await connection.fetchrow("select sum(num_images), sum(used_bytes) from accounts")
    assert tuple(counters) == (1, len(body))
    assert [(path.name, path.read_bytes()) for path in stored_files(settings)] == [(image_id, body)]
    result = await verify(settings)
    assert result.is_well, result.problems


async def assert_nothing_stored(settings: Settings, connection: Any) -> None:
    counters = await connection.fetchrow("select sum(num_images), sum(used_bytes) from accounts")
    assert tuple(counters) == (0, 0)
    await until(lambda: not stored_files(settings))  # a request that has looked at the row may respond before
    assert (await verify(settings)).is_well
