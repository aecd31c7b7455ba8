"""Finding images: what matches, in order, page after page, whatever comes and goes."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bench.plans import LOG_PLANS
from service.api.app import create_app
from service.config.settings import Settings
from service.database import Database
from service.errors import ServiceError
from service.ids import AccountId, parse_image_id
from service.images.queries import ImageQuery, find_images
from service.images.search import Filters, Position, search_images
from tests.conftest import Client, NewTenant, Tenant
from tests.support.samples import ODD_TAGS, insert_image, jpeg

START = datetime(2026, 11, 1, tzinfo=UTC)


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


async def find(api: Client, tenant: Tenant, **parameters: str) -> tuple[int, Any]:
    response = await api.get("/v1/images/search", params=parameters, headers=tenant.headers)
    answer = await response.json()
    return response.status, answer["response"] if answer["success"] else answer["error"]


async def search(api: Client, tenant: Tenant, **parameters: str) -> list[str]:
    """The ids on one page."""
    status, answer = await find(api, tenant, **parameters)
    assert status == 200, answer
    return [image["id"] for image in answer["images"]]


async def pages(api: Client, tenant: Tenant, **parameters: str) -> AsyncIterator[list[str]]:
    """The ids of page after page."""
    while True:
        status, answer = await find(api, tenant, **parameters)
        assert status == 200, answer
        yield [image["id"] for image in answer["images"]]
        if answer["next_cursor"] is None:
            return
        parameters["cursor"] = answer["next_cursor"]


async def insert_many(connection: Any, tenant: Tenant, count: int) -> list[str]:
    """Images in groups of three with the same time of creation. Returns their ids, newest first."""
    images = [(START + timedelta(minutes=number // 3), f"IMAGE{number:05}") for number in range(count)]
    for created_at, image_id in images:
        await insert_image(connection, tenant, image_id, created_at=created_at)
    return [image_id for _, image_id in sorted(images, reverse=True)]


@pytest.mark.usefixtures("worker")
async def test_upload_is_found_by_each_of_its_properties(api: Client, tenant: Tenant) -> None:
    body = jpeg()
    details = {"verbose": "1", "with_exif": "1", "with_mini_preview": "1"}
    response = await api.post(
        "/v1/images", params={"tags": "a,b"}, data=body, headers=tenant.headers | {"Content-Type": "image/jpeg"}
    )
    image_id = (await response.json())["response"]["id"]
    full = (await (await api.get(f"/v1/images/{image_id}", params=details, headers=tenant.headers)).json())["response"]
    for filters in (
        {},
        {"tags": "a"},
        {"tags": "b,a"},
        {"format": "jpeg"},
        {"format": "JPG"},
        {"sha256": full["sha256"]},
        {"sha256": full["sha256"].upper(), "tags": "a", "format": "jpeg"},
        {"created_after": full["created"]},
        {"tags": "a,b", "format": "jpeg", "created_after": full["created"]},
    ):
        status, answer = await find(api, tenant, **filters, **details)
        assert status == 200
        assert answer == {"images": [full], "next_cursor": None}
    for filters in (
        {"tags": "a,c"},
        {"format": "png"},
        {"sha256": "0" * 64},
        {"created_before": full["created"]},
        {"sha256": full["sha256"], "tags": "c"},
        {"sha256": full["sha256"], "format": "png"},
        {"tags": "a", "format": "png"},
        {"tags": "a", "created_before": full["created"]},
    ):
        assert await search(api, tenant, **filters) == []
    status, answer = await find(api, tenant, with_account="1")
    assert [list(image) for image in answer["images"]] == [["id", "width", "height", "filesize", "tags"]]
    assert answer["account"]["num_images"] == 1


async def test_search_returns_ready_images_only(
    api: Client, tenant: Tenant, new_tenant: NewTenant, connection: Any
) -> None:
    await insert_image(connection, tenant, "AAAAAAA", tags=["a"])
    await insert_image(connection, await new_tenant(), "FOREIGN", tags=["a"])
    await insert_image(connection, tenant, "PENDING", tags=["a"], state="pending")
    await insert_image(connection, tenant, "FAILED1", tags=["a"], state="failed")
    for filters in ({}, {"tags": "a"}, {"format": "jpeg"}, {"sha256": "0" * 64}, {"tags": "a", "format": "jpeg"}):
        assert await search(api, tenant, **filters) == ["AAAAAAA"]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("how", ["all", "tag", "tags", "format", "sha256"])
async def test_pages_contain_each_image_once(
    api: Client, tenant: Tenant, connection: Any, limit: int, how: str
) -> None:
    expected = await insert_many(connection, tenant, 50)
    await connection.execute("update images set tags = '{a,b}'")
    filters = {
        "all": {},
        "tag": {"tags": "a"},
        "tags": {"tags": "b,a", "format": "jpeg"},
        "format": {"format": "jpeg"},
        "sha256": {"sha256": "0" * 64},
    }[how]
    results = [page async for page in pages(api, tenant, limit=str(limit), **filters)]
    assert list(itertools.chain(*results)) == expected
    assert [len(page) for page in results[:-1]] == [limit] * (len(results) - 1)
    assert len(results[-1]) > 0


async def test_pages_stay_right_during_changes(api: Client, tenant: Tenant, connection: Any) -> None:
    expected = await insert_many(connection, tenant, 60)
    results: list[str] = []
    deleted: set[str] = set()
    chance = random.Random(1839)
    number = 0
    async for page in pages(api, tenant, limit="7"):
        results += page
        gone = {page[-1], page[2], *chance.sample(expected, 2)}  # the one that the cursor points at, too
        for image_id in gone - deleted:
            await api.delete(f"/v1/images/{image_id}", headers=tenant.headers)
        deleted |= gone
        for _ in range(3):  # newer ones, whose place is on pages that were read
            number += 1
            await insert_image(connection, tenant, f"NEWER{number:05}")
    assert len(set(results)) == len(results)
    assert results == [image_id for image_id in expected if image_id in results]
    assert set(expected) - deleted <= set(results)


async def test_page_size_limits_and_default(api: Client, tenant: Tenant, connection: Any) -> None:
    expected = await insert_many(connection, tenant, 101)
    assert await search(api, tenant) == expected[:20]
    assert await search(api, tenant, limit="100") == expected[:100]


async def test_created_before_is_exclusive(api: Client, tenant: Tenant, connection: Any) -> None:
    for hour in range(4):
        await insert_image(connection, tenant, f"IMAGE0{hour}", created_at=START.replace(hour=hour))
    newest_first = ["IMAGE03", "IMAGE02", "IMAGE01", "IMAGE00"]
    for moment in ("01:00:00Z", "02:00+01:00", "02:00 01:00", "01:00:00.000", "01:00", "00:30:00.0-0030", "02:00+01"):
        assert await search(api, tenant, created_after=f"2026-11-01T{moment}") == newest_first[:3]
        assert await search(api, tenant, created_before=f"2026-11-01T{moment}") == newest_first[3:]
    assert await search(api, tenant, created_after="2026-11-01", created_before="2026-11-02") == newest_first
    assert await search(api, tenant, created_before="2026-11-01") == []
    assert await search(api, tenant, created_after="2026-11-02", created_before="2026-11-01") == []
    all_time = {"created_after": "0001-01-01", "created_before": "9999-12-31T23:59:59.999999"}
    assert await search(api, tenant, **all_time) == newest_first


@pytest.mark.parametrize("tag", ODD_TAGS)
async def test_tags_of_any_script_are_found(api: Client, tenant: Tenant, connection: Any, tag: str) -> None:
    await insert_image(connection, tenant, "AAAAAAA", tags=ODD_TAGS)
    await insert_image(connection, tenant, "BBBBBBB", tags=[other for other in ODD_TAGS if other != tag])
    assert await search(api, tenant, tags=tag) == ["AAAAAAA"]
    assert await search(api, tenant, tags=f"{tag},{ODD_TAGS[0]}") == ["AAAAAAA"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("tags", value) for value in ("x" * 65, "a\x00b", ",".join(f"t{number}" for number in range(21)))],
        *[("format", value) for value in ("", "bmp", "jpeg,png", "\x00", "JPEG ")],
        *[("sha256", value) for value in ("", "0" * 63, "0" * 65, "g" * 64, "0" * 63 + "\n", "٣" * 64)],
        *[("limit", value) for value in ("", "0", "101", "-1", "1.5", "9" * 400, "²", "٣", "1\x00", "+5", "ten")],
        *[
            (name, value)
            for name in ("created_after", "created_before")
            for value in (
                *("", "yesterday", "2026", "2026-13-01", "2026-02-30", "0000-01-01", "99999-01-01", "1763000000"),
                *("2026-11-01\x00", "2026-11-01T25:00", "2026-11-01T10", "2026-11-01T10:00:60", "٢٠٢٦-11-01"),
                *("0001-01-01T00:00+01:00", "9999-12-31T23:59-01:00", "2026-11-01T10:00+99:00", "2026-W45-1"),
            )
        ],
        *[("cursor", value) for value in ("", "x", "AAAA", "\x00", "ü", "A" * 31, "_" * 40, "A" * 4000, "null", "=")],
    ],
)
async def test_invalid_value_names_the_parameter(api: Client, tenant: Tenant, name: str, value: str) -> None:
    status, answer = await find(api, tenant, **{name: value})
    assert (status, answer["code"]) == (400, "invalid-parameter")
    assert name in answer["message"]


async def test_cursor_is_bound_to_its_search(
    api: Client, tenant: Tenant, new_tenant: NewTenant, connection: Any
) -> None:
    await insert_many(connection, tenant, 6)
    await connection.execute("update images set tags = '{a}'")
    _, answer = await find(api, tenant, tags="a", limit="2")
    cursor = answer["next_cursor"]
    assert await search(api, tenant, tags="a", limit="3", verbose="1", cursor=cursor) != []
    raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    far = base64.urlsafe_b64encode(raw[:8] + b"\x7f" + raw[9:]).decode().rstrip("=")
    other = base64.urlsafe_b64encode(raw[:-1] + b"x").decode().rstrip("=")
    stranger = await new_tenant()
    for who, parameters in (
        (stranger, {"tags": "a", "cursor": cursor}),
        (tenant, {"cursor": cursor}),
        (tenant, {"tags": "a", "format": "jpeg", "cursor": cursor}),
        (tenant, {"tags": "a", "created_before": "2030-01-01", "cursor": cursor}),
        (tenant, {"tags": "a", "cursor": far}),
        (tenant, {"tags": "a", "cursor": other}),
        (tenant, {"tags": "a", "cursor": cursor + "A"}),
        (tenant, {"tags": "a", "cursor": cursor[:-1]}),
        (tenant, {"tags": "a", "cursor": cursor[:-1] + chr(ord(cursor[-1]) + 1)}),
    ):
        status, error = await find(api, who, **parameters)
        assert (status, error["code"]) == (400, "invalid-parameter"), parameters


async def test_search_needs_an_api_key(api: Client) -> None:
    assert (await api.get("/v1/images/search")).status == 401


def test_no_route_segment_can_be_an_id() -> None:
    words = {
        word
        for resource in create_app(Settings()).router.resources()
        for word in resource.canonical.removeprefix("/v1/images").split("/")
        if resource.canonical.startswith("/v1/images/") and word and "{" not in word
    }
    assert "search" in words
    for word in words:
        with pytest.raises(ServiceError):
            parse_image_id(word)


async def test_search_equals_a_scan_of_all_rows(connection: Any, tenant: Tenant) -> None:
    chance = random.Random(4)
    tags = ["common", "half", "rare", "never"]
    for number in range(400):
        await insert_image(
            connection,
            tenant,
            f"IMAGE{number:05}",
            tags=[tag for tag, odds in zip(tags, (0.95, 0.5, 0.03, 0), strict=True) if chance.random() < odds],
            format="gif" if chance.random() < 0.05 else "jpeg",
            sha256=digest(str(number % 7)),
            state="ready" if chance.random() < 0.9 else "pending",
            created_at=START + timedelta(minutes=chance.randrange(60)),
        )
    rows = await connection.fetch("select * from images where state = 'ready' order by created_at desc, id desc")
    for _ in range(300):
        filters = Filters(
            tags=chance.sample(tags[: chance.choice((3, 4))], chance.randrange(4)),
            format=chance.choice((None, "gif", "jpeg", "png")),
            sha256=chance.choice((None, None, digest("3"))),
            created_after=chance.choice((None, START + timedelta(minutes=chance.randrange(60)))),
            created_before=chance.choice((None, START + timedelta(minutes=chance.randrange(60)))),
        )
        matching = [
            row["id"]
            for row in rows
            if set(filters.tags) <= set(row["tags"])
            and filters.format in (None, row["format"])
            and filters.sha256 in (None, row["sha256"])
            and (filters.created_after or START) <= row["created_at"]
            and (filters.created_before or row["created_at"] + timedelta(1)) > row["created_at"]
        ]
        results: list[str] = []
        after = None
        while page := await search_images(connection, tenant.id, filters, after, 40):
            results += [image.id for image in page]
            after = Position(page[-1].created_at, page[-1].id)
        assert results == matching, filters


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with Database.open(settings.database_url, connections=1) as database:
        yield database


@pytest.mark.parametrize("planned", ["while all was empty", "before the first analyze", "after it"])
async def test_pages_walk_an_index_with_any_statistics(
    database: Database, connection: Any, tenant: Tenant, planned: str
) -> None:
    """A page of 20,000 images reads few blocks, near the start and deep; and so does one image."""
    searches = [
        (filters, after)
        for filters in (
            Filters(),
            Filters(tags=["common"]),
            Filters(tags=["common", "rare"]),
            Filters(tags=["common", "even"]),
            Filters(tags=["rare"], format="jpeg"),
            Filters(format="jpeg"),
            Filters(sha256=digest("x")),
        )
        for after in (None, Position(START + timedelta(seconds=300), parse_image_id("IMAGE00000")))
    ]

    async def search(pooled: Any) -> None:
        for filters, after in searches:
            await search_images(pooled, AccountId(tenant.id), filters, after, 10)
        await find_images(pooled, [ImageQuery(parse_image_id("IMAGE012345"), AccountId(tenant.id))] * 10)

    async with database.connection() as pooled:
        if planned == "while all was empty":
            await search(pooled)
        await connection.execute(
            """
            insert into images (id, account_id, state, size, sha256, format, width, height, orientation, pages,
                has_alpha, created_at, tags)
            select 'IMAGE' || lpad(n::text, 6, '0'), $1, 'ready', 1, sha256('x'), 'jpeg', 1, 1, 1, 1, false,
                $2::timestamptz + n * interval '1 s',
                array['common', case when n % 2 = 0 then 'even' else 'odd' end] || array_remove(array[
                    case when n % 1000 = 0 then 'rare' end], null)
            from generate_series(1, 20000) as n
            """,
            tenant.id,
            START,
        )
        if planned == "after it":
            await connection.execute("analyze")
        logged: list[str] = []

        def listen(_: object, message: Any) -> None:
            logged.append(message.message.partition("plan:")[2])

        await pooled.execute(f"{LOG_PLANS}; set auto_explain.log_format = json")
        pooled.add_log_listener(listen)
        await search(pooled)
        pooled.remove_log_listener(listen)
    plans = [json.loads(text) for text in logged if " images" in text and "pg_catalog" not in text]
    assert len(plans) > len(searches)
    for plan in plans:
        assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 800, plan
