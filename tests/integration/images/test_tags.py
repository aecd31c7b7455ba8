"""Adding and removing tags: an exact limit, a stable order, all or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from service.accounts.accounts import create_account
from service.config.settings import Settings
from service.database import Database
from service.errors import ServiceError
from service.ids import ImageId
from service.images.tag_rules import MAX_TAG_LENGTH, MAX_TAGS, clean_tags
from service.images.updates import change_tags
from service.schema.changes import create_schema
from tests.conftest import Client, NewTenant, RunBurst, Servers, Tenant
from tests.support.samples import ODD_TAGS, insert_image, jpeg

ID = "AAAAAAA"
ADD = [("GET", "add_tags"), ("PUT", "tags")]
REMOVE = [("GET", "remove_tags"), ("DELETE", "tags")]
JSON = {"Content-Type": "application/json"}


async def change(api: Client, tenant: Tenant, method: str, path: str, **options: Any) -> tuple[int, Any]:
    headers = tenant.headers | options.pop("headers", {})
    response = await api.request(method, f"/v1/images/{path}", headers=headers, **options)
    assert response.headers["Cache-Control"] == "no-store"
    return response.status, await response.json()


async def add(api: Client, tenant: Tenant, ids: str, tags: str) -> tuple[int, Any]:
    return await change(api, tenant, "PUT", f"{ids}/tags", params={"tags": tags})


async def remove(api: Client, tenant: Tenant, ids: str, tags: str) -> tuple[int, Any]:
    return await change(api, tenant, "DELETE", f"{ids}/tags", params={"tags": tags})


async def tags_of(connection: Any, image_id: str = ID) -> Any:
    return await connection.fetchval("select tags from images where id = $1", image_id)


@pytest.mark.parametrize(("method", "word"), ADD)
async def test_added_tags_follow_the_existing_ones(
    api: Client, tenant: Tenant, connection: Any, method: str, word: str
) -> None:
    await insert_image(connection, tenant, ID, tags=["pet", "zoo"])
    status, answer = await change(
        api, tenant, method, f"{ID}/{word}", params={"tags": "animal, dog,zoo,dog , four_legs"}
    )
    assert status == 200
    assert answer == {
        "success": True,
        "response": {
            "id": ID,
            "width": 40,
            "height": 30,
            "filesize": 10,
            "tags": ["pet", "zoo", "animal", "dog", "four_legs"],
        },
    }
    details = await (await api.get(f"/v1/images/{ID}", headers=tenant.headers)).json()
    assert details == answer


@pytest.mark.parametrize(("method", "word"), REMOVE)
async def test_removing_a_missing_tag_is_no_error(
    api: Client, tenant: Tenant, connection: Any, method: str, word: str
) -> None:
    await insert_image(connection, tenant, ID, tags=["a", "b", "c", "d"])
    status, answer = await change(api, tenant, method, f"{ID}/{word}", params={"tags": "c,nowhere,a"})
    assert (status, answer["response"]["tags"]) == (200, ["b", "d"])
    status, answer = await change(api, tenant, method, f"{ID}/{word}", params={"tags": "b,d"})
    assert (status, answer["response"]["tags"]) == (200, [])
    assert await tags_of(connection) == []


@pytest.mark.parametrize("word", ["add_tags", "remove_tags"])
async def test_head_never_changes_tags(api: Client, tenant: Tenant, connection: Any, word: str) -> None:
    await insert_image(connection, tenant, ID, tags=["a"])
    response = await api.head(f"/v1/images/{ID}/{word}", params={"tags": "a,b"}, headers=tenant.headers)
    assert response.status == 405
    assert await tags_of(connection) == ["a"]


async def test_adding_a_present_tag_writes_nothing(api: Client, tenant: Tenant, connection: Any) -> None:
    await insert_image(connection, tenant, ID)
    first = await add(api, tenant, ID, "a,b")
    version = await connection.fetchval("select xmin from images")
    assert await add(api, tenant, ID, "b,a") == first
    assert await connection.fetchval("select xmin from images") == version


@pytest.mark.parametrize(("method", "expected_tags"), [("PUT", ["c", "a", "b"]), ("DELETE", ["c"])])
async def test_put_and_delete_accept_tags_as_json(
    api: Client, tenant: Tenant, connection: Any, method: str, expected_tags: list[str]
) -> None:
    await insert_image(connection, tenant, ID, tags=["c", *(["a", "b"] if method == "DELETE" else [])])
    status, answer = await change(api, tenant, method, f"{ID}/tags", json={"tags": ["a", " b ", "a"]})
    assert (status, answer["response"]["tags"]) == (200, expected_tags)


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ('{"tags": ["a,b"]}', 400, "invalid-parameter"),
        ('{"tags": []}', 400, "invalid-parameter"),
        ('{"tags": ["  "]}', 400, "invalid-parameter"),
        ('{"tags": ["a\\u0000b"]}', 400, "invalid-parameter"),
        ('{"tags": ["\\ud800"]}', 400, None),
        ('{"tags": "a"}', 400, "invalid-body"),
        ('{"tags": [1]}', 400, "invalid-body"),
        ('{"tags": ["a"], "more": 1}', 400, "invalid-body"),
        ('["a"]', 400, "invalid-body"),
        ("{}", 400, "invalid-body"),
        ("{", 400, "invalid-body"),
        (b'{"tags": ["\xff"]}', 400, "invalid-body"),
        ("[" * 60_000, 400, "invalid-body"),
        ('{"tags": ["a"' + " " * 70_000 + "]}", 413, "upload-too-large"),
    ],
)
async def test_json_that_is_not_a_list_of_tags_is_refused(
    api: Client, tenant: Tenant, connection: Any, method: str, body: str | bytes, status: int, code: str | None
) -> None:
    await insert_image(connection, tenant, ID, tags=["old"])
    actual_status, answer = await change(api, tenant, method, f"{ID}/tags", data=body, headers=JSON)
    assert actual_status == status
    assert code is None or answer["error"]["code"] == code
    assert await tags_of(connection) == ["old"]


async def test_tags_in_query_and_body_are_refused(api: Client, tenant: Tenant, connection: Any) -> None:
    await insert_image(connection, tenant, ID)
    status, answer = await change(api, tenant, "PUT", f"{ID}/tags?tags=a", json={"tags": ["b"]})
    assert (status, answer["error"]["code"]) == (400, "invalid-parameter")
    status, answer = await change(api, tenant, "PUT", f"{ID}/tags?tags=a", headers=JSON)
    assert (status, answer["response"]["tags"]) == (200, ["a"])


@pytest.mark.settings(upload_idle_timeout_s=0.2)
async def test_stalled_json_body_is_a_408(api: Client, tenant: Tenant, connection: Any) -> None:
    await insert_image(connection, tenant, ID)

    async def stalling() -> AsyncIterator[bytes]:
        yield b'{"tags": '
        await asyncio.sleep(1)
        yield b'["a"]}'

    status, answer = await change(api, tenant, "PUT", f"{ID}/tags", data=stalling(), headers=JSON)
    assert (status, answer["error"]["code"]) == (408, "upload-timeout")


@pytest.mark.parametrize("query", ["", "?tags=", "?tags=,%20,", "?tags"])
@pytest.mark.parametrize(("method", "word"), [*ADD, *REMOVE])
async def test_missing_tags_are_a_400(
    api: Client, tenant: Tenant, connection: Any, method: str, word: str, query: str
) -> None:
    await insert_image(connection, tenant, ID, tags=["a"])
    status, answer = await change(api, tenant, method, f"{ID}/{word}{query}")
    assert (status, answer["error"]["code"]) == (400, "invalid-parameter")
    assert "tags" in answer["error"]["message"]
    assert await tags_of(connection) == ["a"]


@pytest.mark.parametrize(("method", "word"), [*ADD, *REMOVE])
async def test_unknown_id_changes_no_tags(
    api: Client, tenant: Tenant, new_tenant: NewTenant, connection: Any, method: str, word: str
) -> None:
    other = await new_tenant()
    await insert_image(connection, tenant, ID, tags=["a"])
    await insert_image(connection, other, "FOREIGN", tags=["a"])
    await insert_image(connection, tenant, "FAILED1", state="failed", tags=["a"])
    query = {"tags": "a" if word == "remove_tags" or method == "DELETE" else "b"}
    for missing, status, code in (
        ("FOREIGN", 404, "image-not-found"),
        ("FAILED1", 404, "image-not-found"),
        ("UNKNOWN", 404, "image-not-found"),
        ("short", 400, "invalid-id"),
        ("", 400, "invalid-id"),
    ):
        for ids in (f"{ID},{missing}", missing) if missing else (f"{ID},",):
            actual_status, answer = await change(api, tenant, method, f"{ids}/{word}", params=query)
            assert (actual_status, answer["error"]["code"]) == (status, code)
    for image_id in (ID, "FOREIGN", "FAILED1"):
        assert await tags_of(connection, image_id) == ["a"]


async def test_tag_changes_keep_the_order_of_ids(api: Client, tenant: Tenant, connection: Any) -> None:
    ids = [f"IMAGE{number:02}" for number in range(21)]
    for image_id in ids:
        await insert_image(connection, tenant, image_id)
    status, answer = await add(api, tenant, ",".join(ids), "a")
    assert (status, answer["error"]["code"]) == (400, "invalid-id")
    params = [*ids[19::-1], ids[3]]
    status, answer = await add(api, tenant, ",".join(params), "a")
    assert status == 200
    assert [image["id"] for image in answer["response"]] == ids[19::-1]
    assert {tuple(image["tags"]) for image in answer["response"]} == {("a",)}


async def test_tag_change_can_return_all_details(api: Client, tenant: Tenant, connection: Any) -> None:
    await insert_image(connection, tenant, ID)
    await insert_image(connection, tenant, "BBBBBBB")
    params = {"verbose": "1", "with_exif": "1", "with_mini_preview": "1", "with_account": "1"}
    _, one = await change(api, tenant, "GET", f"{ID}/add_tags", params=params | {"tags": "a"})
    details = await (await api.get(f"/v1/images/{ID}", params=params, headers=tenant.headers)).json()
    assert one == details
    assert {"exif", "mini_preview", "account", "sha256"} < set(one["response"])
    _, both = await change(api, tenant, "GET", f"BBBBBBB,{ID}/add_tags", params=params | {"tags": "a"})
    assert both["response"][1] == details["response"]


async def test_tags_of_any_script_are_unchanged(api: Client, tenant: Tenant, connection: Any) -> None:
    await insert_image(connection, tenant, ID)
    status, answer = await change(api, tenant, "PUT", f"{ID}/tags", json={"tags": ODD_TAGS})
    assert (status, answer["response"]["tags"]) == (200, ODD_TAGS)
    status, answer = await remove(api, tenant, ID, ",".join(ODD_TAGS[1:]))
    assert (status, answer["response"]["tags"]) == (200, ODD_TAGS[:1])


async def test_tags_are_normalised_to_nfc(api: Client, tenant: Tenant, connection: Any) -> None:
    await insert_image(connection, tenant, ID)
    decomposed, composed = "cafe\u0301", "caf\u00e9"
    status, answer = await change(api, tenant, "PUT", f"{ID}/tags", json={"tags": [decomposed, composed, "\u212b"]})
    assert (status, answer["response"]["tags"]) == (200, [composed, "\u00c5"])
    expected_tags = await api.get("/v1/images/search", params={"tags": decomposed}, headers=tenant.headers)
    assert len((await expected_tags.json())["response"]["images"]) == 1
    assert (await remove(api, tenant, ID, decomposed))[1]["response"]["tags"] == ["\u00c5"]


async def test_stored_tags_become_nfc_when_tags_change(api: Client, tenant: Tenant, connection: Any) -> None:
    await insert_image(connection, tenant, ID, tags=["cafe\u0301", "a", "u\u0308"])
    status, answer = await remove(api, tenant, ID, "caf\u00e9")
    assert (status, answer["response"]["tags"]) == (200, ["a", "\u00fc"])
    assert await connection.fetch("select tag from image_tags order by tag") == [("a",), ("\u00fc",)]


async def test_tags_change_in_an_sql_ascii_database(servers: Servers) -> None:
    """PostgreSQL's default encoding without a locale, in which it cannot normalise text."""
    admin = await asyncpg.connect(servers.postgres.dsn)
    await admin.execute("create database ascii template template0 encoding 'SQL_ASCII' locale 'C'")
    await admin.close()
    dsn = servers.postgres.dsn_of("ascii")
    await create_schema(dsn)
    connection = await asyncpg.connect(dsn)
    tenant = Tenant(await create_account(connection, "ascii", 1 << 20), "ascii", "")
    await insert_image(connection, tenant, ID, tags=["\u00e9"])
    [image] = await change_tags(connection, [ImageId(ID)], tenant.id, add=["\u732b"])
    await connection.close()
    assert image.tags == ["\u00e9", "\u732b"]


def test_tag_length_counts_after_nfc() -> None:
    assert clean_tags(["e\u0301" * MAX_TAG_LENGTH]) == ["\u00e9" * MAX_TAG_LENGTH]
    for longer in ("e\u0301" * (MAX_TAG_LENGTH + 1), "\U0001d160" * 22, "a" + "\u0316\u0301" * 30_000):
        with pytest.raises(ServiceError, match="at most 64"):
            clean_tags([longer])


@pytest.mark.parametrize(
    "tag",
    [
        *("\u200b", "\u200d\ufe0f", "\u0301", "\u20dd", "\u0903", "\u00ad", "\u2060", "\ufeff", "\u202e", "\u034f"),
        *("\u00a0", "\u2003", "\u3000", "\u1680", "\u2800", "\u3164", "\u115f", "\uffa0", "\t", "\x85", "\u2028"),
        *("\ud800", "\ufffe", "\U000e0041", "\U0001fffe", " \u200b ", "\x00", "\U0001d159", "\U00013441"),
    ],
)
def test_invisible_tag_is_refused(tag: str) -> None:
    with pytest.raises(ServiceError, match="visible character"):
        clean_tags(["lake", tag])


@pytest.mark.parametrize(
    "tag", ["\U0001f408", "\u2764\ufe0f", "1\ufe0f\u20e3", "\u0915\u093f", "\U000f0000", "-", "\ufffd", "\u06dd"]
)
def test_tag_with_a_visible_character_is_accepted(tag: str) -> None:
    assert clean_tags([tag]) == [tag]


async def test_too_many_tags_change_no_image(api: Client, tenant: Tenant, connection: Any) -> None:
    await insert_image(connection, tenant, ID, tags=[f"t{number}" for number in range(19)])
    await insert_image(connection, tenant, "BBBBBBB")
    status, answer = await add(api, tenant, f"BBBBBBB,{ID}", "t3,x,y")
    assert (status, answer["error"]["code"]) == (400, "too-many-tags")
    assert ID in answer["error"]["message"]
    assert await tags_of(connection, "BBBBBBB") == []
    assert len(await tags_of(connection)) == 19
    status, answer = await add(api, tenant, f"BBBBBBB,{ID}", "t3,x")
    assert status == 200
    assert await tags_of(connection) == [*(f"t{number}" for number in range(19)), "x"]


@pytest.mark.settings(wait_s=0.2)
async def test_pending_image_keeps_added_tags(api: Client, tenant: Tenant, connection: Any, burst: RunBurst) -> None:
    response = await api.post(
        "/v1/images?tags=a,b", data=jpeg(), headers=tenant.headers | {"Content-Type": "image/jpeg"}
    )
    image_id = (await response.json())["response"]["id"]
    status, answer = await add(api, tenant, image_id, "c")
    assert (status, answer["response"]["status"], answer["response"]["tags"]) == (200, "processing", ["a", "b", "c"])
    await remove(api, tenant, image_id, "a")
    await burst()
    details = await (await api.get(f"/v1/images/{image_id}", headers=tenant.headers)).json()
    assert (details["response"]["width"], details["response"]["tags"]) == (64, ["b", "c"])
    assert await connection.fetch("select tag from image_tags order by tag") == [("b",), ("c",)]


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with Database.open(settings.database_url, connections=20) as database:
        yield database


async def test_tag_limit_is_exact_in_a_race(database: Database, connection: Any, tenant: Tenant) -> None:
    images = [ImageId(f"IMAGE{number:02}") for number in range(4)]
    for image_id in images:
        await insert_image(connection, tenant, image_id, tags=["old"])

    async def try_add(number: int) -> bool:
        try:
            async with database.connection() as own:
                params = images if number % 2 else images[::-1]
                await change_tags(own, params, tenant.id, add=[f"{number}-{place}" for place in range(2)])
        except ServiceError as error:
            if error.code != "too-many-tags":
                raise
            return False
        return True

    accepted = await asyncio.gather(*(try_add(number) for number in range(20)))
    assert sum(accepted) == 9
    for image_id in images:
        tags = await tags_of(connection, image_id)
        assert len(tags) == len(set(tags)) == MAX_TAGS - 1
        assert {int(tag.split("-")[0]) for tag in tags[1:]} == {n for n, done in enumerate(accepted) if done}


async def test_concurrent_add_and_remove_lose_nothing(database: Database, connection: Any, tenant: Tenant) -> None:
    await insert_image(connection, tenant, ID, tags=["a", "b"])
    async with database.connection() as first:
        transaction = first.transaction()
        await transaction.start()
        await change_tags(first, [ImageId(ID)], tenant.id, remove=["b"])
        async with database.connection() as second:
            adding = asyncio.create_task(change_tags(second, [ImageId(ID)], tenant.id, add=["b"]))
            await asyncio.sleep(0.1)
            assert not adding.done()
            await transaction.commit()
            [image] = await adding
    assert image.tags == ["a", "b"]
    assert await tags_of(connection) == ["a", "b"]
    assert await connection.fetch("select tag from image_tags order by tag") == [("a",), ("b",)]
