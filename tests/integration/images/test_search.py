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
from service.database import Database, apply_schema
from service.errors import ServiceError
from service.ids import AccountId, parse_image_id
from service.images.queries import Wanted, find_images
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


async def found(api: Client, tenant: Tenant, **parameters: str) -> list[str]:
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
    """Images of which three at a time have the same moment; their ids, newest first."""
    images = [(START + timedelta(minutes=number // 3), f"IMAGE{number:05}") for number in range(count)]
    for created_at, image_id in images:
        await insert_image(connection, tenant, image_id, created_at=created_at)
    return [image_id for _, image_id in sorted(images, reverse=True)]


@pytest.mark.usefixtures("worker")
async def test_an_upload_is_found_by_all_that_it_is_and_shown_as_by_its_id(api: Client, tenant: Tenant) -> None:
    body = jpeg()
    asked = {"verbose": "1", "with_exif": "1", "with_mini_preview": "1"}
    response = await api.post(
        "/v1/images", params={"tags": "a,b"}, data=body, headers=tenant.headers | {"Content-Type": "image/jpeg"}
    )
    image_id = (await response.json())["response"]["id"]
    full = (await (await api.get(f"/v1/images/{image_id}", params=asked, headers=tenant.headers)).json())["response"]
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
        status, answer = await find(api, tenant, **filters, **asked)
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
        assert await found(api, tenant, **filters) == []
    status, answer = await find(api, tenant, with_account="1")
    assert [list(image) for image in answer["images"]] == [["id", "width", "height", "filesize", "tags"]]
    assert answer["account"]["num_images"] == 1


async def test_only_the_account_s_ready_images_are_found(
    api: Client, tenant: Tenant, new_tenant: NewTenant, connection: Any
) -> None:
    await insert_image(connection, tenant, "AAAAAAA", tags=["a"])
    await insert_image(connection, await new_tenant(), "FOREIGN", tags=["a"])
    await insert_image(connection, tenant, "PENDING", tags=["a"], state="pending")
    await insert_image(connection, tenant, "FAILED1", tags=["a"], state="failed")
    for filters in ({}, {"tags": "a"}, {"format": "jpeg"}, {"sha256": "0" * 64}, {"tags": "a", "format": "jpeg"}):
        assert await found(api, tenant, **filters) == ["AAAAAAA"]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("how", ["all", "tag", "tags", "format", "sha256"])
async def test_pages_hold_every_image_once_newest_first_through_equal_moments(
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
    seen = [page async for page in pages(api, tenant, limit=str(limit), **filters)]
    assert list(itertools.chain(*seen)) == expected
    assert [len(page) for page in seen[:-1]] == [limit] * (len(seen) - 1)
    assert len(seen[-1]) > 0


async def test_pages_stay_right_while_images_come_and_go(api: Client, tenant: Tenant, connection: Any) -> None:
    expected = await insert_many(connection, tenant, 60)
    seen: list[str] = []
    deleted: set[str] = set()
    chance = random.Random(1839)
    number = 0
    async for page in pages(api, tenant, limit="7"):
        seen += page
        gone = {page[-1], page[2], *chance.sample(expected, 2)}  # the one that the cursor points at, too
        for image_id in gone - deleted:
            await api.delete(f"/v1/images/{image_id}", headers=tenant.headers)
        deleted |= gone
        for _ in range(3):  # newer ones, whose place is on pages that were read
            number += 1
            await insert_image(connection, tenant, f"NEWER{number:05}")
    assert len(set(seen)) == len(seen)
    assert seen == [image_id for image_id in expected if image_id in seen]
    assert set(expected) - deleted <= set(seen)


async def test_limits_and_the_default(api: Client, tenant: Tenant, connection: Any) -> None:
    expected = await insert_many(connection, tenant, 101)
    assert await found(api, tenant) == expected[:20]
    assert await found(api, tenant, limit="100") == expected[:100]


async def test_moments_are_from_the_first_up_to_but_not_with_the_last(
    api: Client, tenant: Tenant, connection: Any
) -> None:
    for hour in range(4):
        await insert_image(connection, tenant, f"IMAGE0{hour}", created_at=START.replace(hour=hour))
    newest_first = ["IMAGE03", "IMAGE02", "IMAGE01", "IMAGE00"]
    for moment in ("01:00:00Z", "02:00+01:00", "02:00 01:00", "01:00:00.000", "01:00", "00:30:00.0-0030", "02:00+01"):
        assert await found(api, tenant, created_after=f"2026-11-01T{moment}") == newest_first[:3]
        assert await found(api, tenant, created_before=f"2026-11-01T{moment}") == newest_first[3:]
    assert await found(api, tenant, created_after="2026-11-01", created_before="2026-11-02") == newest_first
    assert await found(api, tenant, created_before="2026-11-01") == []
    assert await found(api, tenant, created_after="2026-11-02", created_before="2026-11-01") == []
    all_time = {"created_after": "0001-01-01", "created_before": "9999-12-31T23:59:59.999999"}
    assert await found(api, tenant, **all_time) == newest_first


@pytest.mark.parametrize("tag", ODD_TAGS)
async def test_tags_of_any_script_are_found(api: Client, tenant: Tenant, connection: Any, tag: str) -> None:
    await insert_image(connection, tenant, "AAAAAAA", tags=ODD_TAGS)
    await insert_image(connection, tenant, "BBBBBBB", tags=[other for other in ODD_TAGS if other != tag])
    assert await found(api, tenant, tags=tag) == ["AAAAAAA"]
    assert await found(api, tenant, tags=f"{tag},{ODD_TAGS[0]}") == ["AAAAAAA"]


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
async def test_a_value_that_is_not_allowed_is_a_400_by_its_name(
    api: Client, tenant: Tenant, name: str, value: str
) -> None:
    status, answer = await find(api, tenant, **{name: value})
    assert (status, answer["code"]) == (400, "invalid-parameter")
    assert name in answer["message"]


async def test_a_cursor_is_good_for_its_own_search_only(
    api: Client, tenant: Tenant, new_tenant: NewTenant, connection: Any
) -> None:
    await insert_many(connection, tenant, 6)
    await connection.execute("update images set tags = '{a}'")
    _, answer = await find(api, tenant, tags="a", limit="2")
    cursor = answer["next_cursor"]
    assert await found(api, tenant, tags="a", limit="3", verbose="1", cursor=cursor) != []
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


async def test_without_a_key_nothing_is_found(api: Client) -> None:
    assert (await api.get("/v1/images/search")).status == 401


def test_no_word_of_the_routes_can_be_an_id() -> None:
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


async def test_what_is_found_is_what_a_plain_look_at_every_row_finds(connection: Any, tenant: Tenant) -> None:
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
        seen: list[str] = []
        after = None
        while page := await search_images(connection, tenant.id, filters, after, 40):
            seen += [image.id for image in page]
            after = Position(page[-1].created_at, page[-1].id)
        assert seen == matching, filters


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with Database.open(settings.database_url, connections=1) as database:
        yield database


@pytest.mark.parametrize("planned", ["while all was empty", "before the first analyze", "after it"])
async def test_a_page_is_read_along_an_index_whatever_the_planner_knows(
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
        await find_images(pooled, [Wanted(parse_image_id("IMAGE012345"), AccountId(tenant.id))] * 10)

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


async def test_an_older_database_gets_its_tags_indexed_once(database_url: str, connection: Any, tenant: Tenant) -> None:
    await insert_image(connection, tenant, "AAAAAAA", tags=["a", "b"])
    await insert_image(connection, tenant, "PENDING", tags=["a"], state="pending")
    await connection.execute("drop table image_tags; drop function keep_image_tags cascade; delete from applied_schema")
    for _ in range(2):
        await apply_schema(database_url)
        indexed = await connection.fetch("select tag, image_id from image_tags order by tag")
        assert [tuple(row) for row in indexed] == [("a", "AAAAAAA"), ("b", "AAAAAAA")]
    await connection.execute("update images set state = 'ready', tags = '{c}'")
    assert await connection.fetchval("select string_agg(tag || image_id, ' ' order by image_id) from image_tags") == (
        "cAAAAAAA cPENDING"
    )
    await connection.execute("update images set state = 'failed' where id = 'PENDING'")
    await connection.execute("delete from images where id = 'AAAAAAA'")
    assert await connection.fetchval("select count(*) from image_tags") == 0
