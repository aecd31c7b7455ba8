"""Idempotency-Key: a repeated request, also a concurrent one, makes no second image."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.config.settings import Settings
from tests.conftest import Client, NewTenant, RunBurst, Tenant
from tests.support.idempotency import (
    LOCAL,
    OTHER,
    PICTURE,
    Origin,
    answer,
    assert_one_image,
    get_url,
    post,
    post_form,
    post_url,
)
from tests.support.samples import jpeg, stored_files
from tests.support.verify import verify
from tests.support.waiting import until

# The header


@pytest.mark.parametrize("key", ["", "two words", "é", "x" * 256, "tab\there"])
async def test_key_must_be_visible_ascii(
    api: Client, tenant: Tenant, settings: Settings, connection: Any, key: str
) -> None:
    refused = (400, "invalid-idempotency-key")
    headers = tenant.headers | {"Content-Type": "image/jpeg", "Idempotency-Key": key}
    assert (await answer(api.post("/v1/images", data=PICTURE, headers=headers))).refusal == refused
    assert (await post_url(api, tenant, "http://127.0.0.1/a", key=key)).refusal == refused
    assert (await get_url(api, tenant, "http://127.0.0.1/a", key=key)).refusal == refused
    assert await connection.fetchval("select count(*) from images") == 0
    assert stored_files(settings) == []


async def test_two_keys_are_refused(api: Client, tenant: Tenant) -> None:
    headers = [
        *tenant.headers.items(),
        ("Content-Type", "image/jpeg"),
        ("Idempotency-Key", "a"),
        ("Idempotency-Key", "b"),
    ]
    assert (await answer(api.post("/v1/images", data=PICTURE, headers=headers))).refusal == (
        400,
        "invalid-idempotency-key",
    )


@pytest.mark.usefixtures("worker")
async def test_longest_key_is_accepted(api: Client, tenant: Tenant) -> None:
    visible = "".join(map(chr, range(0x21, 0x7F)))
    for key in ("x" * 255, visible, "k"):
        first, again = [await post(api, tenant, key=key) for _ in range(2)]
        assert first == again
        assert first.status == 200


# The same again


@pytest.mark.usefixtures("worker")
async def test_repeated_upload_returns_the_same_image(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    first = await post(api, tenant, tags="lake", verbose="1", with_exif="1", with_mini_preview="1")
    assert first.status == 200
    again = await post(api, tenant, tags="lake", verbose="1", with_exif="1", with_mini_preview="1")
    assert again == first
    await assert_one_image(settings, connection, first.id)


@pytest.mark.usefixtures("worker")
async def test_repetition_may_use_another_body_form(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield PICTURE[:100]
        yield PICTURE[100:]

    first = await post_form(api, tenant)
    assert first.status == 200
    assert await post(api, tenant) == await post(api, tenant, pieces()) == await post_form(api, tenant) == first
    await assert_one_image(settings, connection, first.id)


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_repeated_url_is_downloaded_once(
    api: Client, tenant: Tenant, origin: Origin, url: str, settings: Settings, connection: Any
) -> None:
    first = await get_url(api, tenant, url)
    assert first.status == 200
    origin.body = OTHER  # a later download would get this
    assert await get_url(api, tenant, url) == await post_url(api, tenant, url) == first
    assert origin.requests == 1
    await assert_one_image(settings, connection, first.id)


@LOCAL
@pytest.mark.usefixtures("worker", "origin")
async def test_key_with_another_body_or_url_is_refused(
    api: Client, tenant: Tenant, url: str, settings: Settings, connection: Any
) -> None:
    first = await post(api, tenant)
    reused = (422, "idempotency-key-reused")
    assert (await post(api, tenant, OTHER)).refusal == reused
    assert (await post_form(api, tenant, OTHER)).refusal == reused
    assert (await get_url(api, tenant, url)).refusal == reused
    assert (await post_url(api, tenant, url)).refusal == reused
    await assert_one_image(settings, connection, first.id)


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_key_of_a_url_is_bound_to_it(
    api: Client, tenant: Tenant, origin: Origin, url: str, settings: Settings, connection: Any
) -> None:
    first = await get_url(api, tenant, url)
    reused = (422, "idempotency-key-reused")
    assert (await get_url(api, tenant, f"{url}?other")).refusal == reused
    assert (await post_url(api, tenant, f"{url}?other")).refusal == reused
    assert (await post(api, tenant)).refusal == reused
    assert origin.requests == 1
    await assert_one_image(settings, connection, first.id)


@pytest.mark.usefixtures("worker")
async def test_tenants_do_not_share_keys(api: Client, tenant: Tenant, new_tenant: NewTenant) -> None:
    stranger = await new_tenant()
    mine, theirs = await post(api, tenant), await post(api, stranger, OTHER)
    assert (mine.status, theirs.status) == (200, 200)
    assert mine.id != theirs.id
    assert await post(api, tenant) == mine
    assert await post(api, stranger, OTHER) == theirs


@pytest.mark.usefixtures("worker")
async def test_uploads_without_a_key_are_separate_images(api: Client, tenant: Tenant) -> None:
    image_ids = {(await post(api, tenant, key=key)).id for key in (None, None, "a", "b")}
    assert len(image_ids) == 4


@pytest.mark.settings(wait_s=0.2)
async def test_repetition_without_a_worker_is_a_202(
    api: Client, tenant: Tenant, burst: RunBurst, settings: Settings, connection: Any
) -> None:
    first, again = await post(api, tenant), await post(api, tenant)
    assert first == again
    assert (first.status, first.shown["status"]) == (202, "processing")
    assert (await burst()).complete == 1
    later = await post(api, tenant)
    assert (later.status, later.id, later.shown["width"]) == (200, first.id, 64)
    await assert_one_image(settings, connection, first.id)


# Together


@pytest.mark.usefixtures("worker")
async def test_concurrent_repetitions_make_one_image(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    first, *others = await asyncio.gather(*(post(api, tenant, verbose="1") for _ in range(40)))
    assert first.status == 200
    assert others == [first] * 39
    await assert_one_image(settings, connection, first.id)


@pytest.mark.settings(wait_s=0.2)
async def test_concurrent_repetitions_without_a_worker(
    api: Client, tenant: Tenant, settings: Settings, connection: Any, burst: RunBurst
) -> None:
    first, *others = await asyncio.gather(*(post(api, tenant) for _ in range(20)))
    assert first.status == 202
    assert others == [first] * 19
    assert (await burst()).complete == 1
    await assert_one_image(settings, connection, first.id)


@pytest.mark.usefixtures("worker")
async def test_one_of_two_racing_pictures_gets_the_key(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    answers = await asyncio.gather(*(post(api, tenant, (PICTURE, OTHER)[number % 2]) for number in range(20)))
    won = 0 if answers[0].status == 200 else 1
    assert {each.id for each in answers[won::2]} == {answers[won].id}
    assert {each.refusal for each in answers[1 - won :: 2]} == {(422, "idempotency-key-reused")}
    await assert_one_image(settings, connection, answers[won].id, (PICTURE, OTHER)[won])


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_concurrent_downloads_make_one_image(
    api: Client, tenant: Tenant, origin: Origin, url: str, settings: Settings, connection: Any
) -> None:
    origin.gate.clear()
    requests = asyncio.gather(*(get_url(api, tenant, url) for _ in range(8)))
    await until(lambda: origin.requests == 8)
    origin.gate.set()
    first, *others = await requests
    assert first.status == 200
    assert others == [first] * 7
    await assert_one_image(settings, connection, first.id)


@pytest.mark.usefixtures("worker")
async def test_many_keys_sent_twice_make_an_image_each(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    bodies = [jpeg(40 + number, 30) for number in range(12)]
    answers = await asyncio.gather(
        *(post(api, tenant, body, key=f"key-{number}") for _ in range(3) for number, body in enumerate(bodies))
    )
    assert answers[:12] == answers[12:24] == answers[24:]
    assert [each.shown["width"] for each in answers[:12]] == [40 + number for number in range(12)]
    assert len(stored_files(settings)) == await connection.fetchval("select num_images from accounts") == 12
    assert (await verify(settings)).is_well


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
async def test_two_services_make_one_image(
    api: Client, other_api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    for _ in range(3):
        first, *others = await asyncio.gather(*(post((api, other_api)[number % 2], tenant) for number in range(40)))
        assert first.status == 200
        assert others == [first] * 39
        await assert_one_image(settings, connection, first.id)
        await answer(other_api.delete(f"/v1/images/{first.id}", headers=tenant.headers))
