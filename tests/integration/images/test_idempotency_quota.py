"""Idempotency-Key: a retry finds its image also when the quota or the downloads are used up."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from service.accounts.accounts import create_key
from service.config.settings import Settings
from service.errors import ServiceError
from service.uploads import receiving
from tests.conftest import Client, NewTenant, Tenant
from tests.support.idempotency import LOCAL, OTHER, PICTURE, Origin, assert_one_image, get_url, post
from tests.support.waiting import until


@LOCAL
@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("by_url", [False, True])
async def test_retry_finds_an_image_that_filled_quota(
    api: Client, new_tenant: NewTenant, url: str, settings: Settings, connection: Any, by_url: bool
) -> None:
    tenant = await new_tenant(max_bytes=len(PICTURE))
    send = partial(get_url, api, tenant, url) if by_url else partial(post, api, tenant)
    first = await send()
    assert first.status == 200
    # With another API key, for which no account with space is cached: the first look-up finds it full.
    tenant = replace(tenant, key=await create_key(connection, tenant.name))
    send = partial(get_url, api, tenant, url) if by_url else partial(post, api, tenant)
    assert await send() == first
    assert (await send(key="another")).refusal == (403, "quota-exceeded")
    assert (await post(api, tenant, OTHER)).refusal == (422, "idempotency-key-reused")
    await assert_one_image(settings, connection, first.id)


@pytest.mark.usefixtures("worker")
async def test_concurrent_repetitions_in_a_full_quota(
    api: Client, new_tenant: NewTenant, settings: Settings, connection: Any
) -> None:
    tenant = await new_tenant(max_bytes=len(PICTURE) + 10)
    first, *others = await asyncio.gather(*(post(api, tenant) for _ in range(20)))
    assert first.status == 200
    assert others == [first] * 19
    await assert_one_image(settings, connection, first.id)


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_download_before_the_quota_was_full(
    api: Client, new_tenant: NewTenant, origin: Origin, url: str, settings: Settings, connection: Any
) -> None:
    tenant = await new_tenant(max_bytes=len(PICTURE))
    origin.gate.clear()
    slow = asyncio.create_task(get_url(api, tenant, url))
    await until(lambda: origin.requests == 1)
    quick = asyncio.create_task(get_url(api, tenant, url))
    await until(lambda: origin.requests == 2)
    origin.gate.set()
    first = await quick
    assert first.status == 200
    assert await slow == first
    await assert_one_image(settings, connection, first.id)


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_stored_url_needs_no_download_slot(
    api: Client, tenant: Tenant, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await get_url(api, tenant, url)

    def refuse(*_: object) -> None:
        raise ServiceError("busy")

    monkeypatch.setattr(receiving.Admission, "download", refuse)
    assert await get_url(api, tenant, url) == first
    assert (await get_url(api, tenant, url, key="another")).refusal == (503, "busy")
