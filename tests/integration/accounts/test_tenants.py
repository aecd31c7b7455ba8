"""Accounts never meet: what belongs to one does not exist for the other, at any route."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from service.accounts.accounts import new_key, revoke_key
from service.api.openapi.document import make_document
from service.api.openapi.operations import OPERATIONS
from service.api.openapi.parts import Operation
from service.config.settings import Settings
from service.ids import KEY_PATTERN
from tests.conftest import Client, NewTenant, Tenant
from tests.support.samples import insert_image

WITH_ID = [operation for operation in OPERATIONS if "{id}" in operation.path and operation.path.startswith("/v1/")]
WITH_KEY = [operation for operation in OPERATIONS if operation.path.startswith("/v1/")]

named = pytest.mark.parametrize("operation", WITH_ID, ids=lambda operation: f"{operation.method} {operation.path}")


async def ask(api: Client, operation: Operation, key: str, image_id: str) -> tuple[int, str]:
    path = operation.path.replace("{id}", image_id)
    answer = await api.request(operation.method, path, params={"key": key, "tags": "stolen"})
    return answer.status, (await answer.text()).replace(image_id.rpartition(",")[2], "ID")


@named
@pytest.mark.parametrize("before", ["", "Visible,"], ids=["alone", "behind one's own"])
async def test_image_of_another_account_is_not_found(
    api: Client, connection: Any, tenant: Tenant, new_tenant: NewTenant, operation: Operation, before: str
) -> None:
    stranger = await new_tenant()
    await insert_image(connection, tenant, "Private", tags=["mine"])
    await insert_image(connection, stranger, "Visible", tags=["theirs"])
    rows_before = await rows(connection)
    status, seen = await ask(api, operation, stranger.key, f"{before}Private")
    assert status in (400, 404)
    assert (status, seen) == await ask(api, operation, stranger.key, f"{before}Missing")
    assert await rows(connection) == rows_before


async def rows(connection: Any) -> list[Any]:
    return [dict(row) for row in await connection.fetch("select * from images order by id")]


async def test_search_excludes_other_accounts(
    api: Client, connection: Any, tenant: Tenant, new_tenant: NewTenant
) -> None:
    stranger = await new_tenant()
    await insert_image(connection, tenant, "Private", tags=["shared"], sha256=bytes(32))
    for query in ({}, {"tags": "shared"}, {"format": "jpeg"}, {"sha256": "00" * 32}):
        mine = await (await api.get("/v1/images/search", params={**query, "key": tenant.key})).json()
        assert [image["id"] for image in mine["response"]["images"]] == ["Private"]
        theirs = await (await api.get("/v1/images/search", params={**query, "key": stranger.key})).json()
        assert theirs["response"]["images"] == []


async def test_cursor_of_another_account_reveals_nothing(
    api: Client, connection: Any, tenant: Tenant, new_tenant: NewTenant
) -> None:
    stranger = await new_tenant()
    for number in range(3):
        await insert_image(connection, tenant, f"Private{number}")
    first = await (await api.get("/v1/images/search", params={"key": tenant.key, "limit": "1"})).json()
    cursor = first["response"]["next_cursor"]
    answer = await api.get("/v1/images/search", params={"key": stranger.key, "limit": "1", "cursor": cursor})
    assert "Private" not in await answer.text()


async def test_account_is_that_of_the_key(api: Client, connection: Any, tenant: Tenant, new_tenant: NewTenant) -> None:
    stranger = await new_tenant()
    await connection.execute("update accounts set num_images = 7, used_bytes = 70 where id = $1", tenant.id)
    account = await (await api.get("/v1/account", params={"key": stranger.key})).json()
    assert account["response"]["num_images"] == 0


@pytest.mark.parametrize("operation", WITH_KEY, ids=lambda operation: f"{operation.method} {operation.path}")
async def test_invalid_keys_have_the_same_error(
    api: Client, connection: Any, tenant: Tenant, operation: Operation
) -> None:
    """Responses do not distinguish them. They are looked up by their SHA-256, so the time reveals no prefix
    that is right."""
    await revoke_key(connection, await connection.fetchval("select id from api_keys where account_id = $1", tenant.id))
    path = operation.path.replace("{id}", "Missing")
    seen = set()
    for key in ("", new_key(), tenant.key, tenant.key[:-1], tenant.key[:-1] + "\0"):
        answer = await api.request(operation.method, path, params={"key": key} if key else {})
        seen.add((answer.status, await answer.text(), answer.headers["WWW-Authenticate"]))
    assert len(seen) == 1
    assert next(iter(seen))[0] == 401


def test_openapi_document_contains_no_key() -> None:
    written = json.dumps(make_document(Settings()))
    assert not [word for word in re.findall(r"[0-9A-Za-z]+", written) if KEY_PATTERN.fullmatch(word)]


async def test_metrics_contain_no_account(api: Client, connection: Any, tenant: Tenant) -> None:
    await insert_image(connection, tenant, "Private", tags=["secret-tag"])
    await api.get("/v1/images/Private", params={"key": tenant.key})
    seen = await (await api.get("/metrics")).text()
    for secret in (tenant.key, tenant.name, "Private", "secret-tag"):
        assert secret not in seen
