"""Accounts that the operator suspends and resumes, and whose quota is changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from service.accounts.accounts import AccountBeingDeleted, resume_account, start_deletion, suspend_account
from service.config.settings import Settings
from service.database import Database
from service.ids import ImageId
from service.images.models import NewImage
from service.images.pending import insert_pending
from tests.conftest import Client, NewTenant, Tenant
from tests.support.api import error_of, upload_image
from tests.support.commands import daguerre
from tests.support.samples import JPEG_TYPE, jpeg, stored_files
from tests.support.verify import verify
from tests.support.waiting import until

SUSPENDED = (403, "account-suspended")

Cli = Callable[..., str]


@pytest.fixture
def cli(settings: Settings) -> Cli:
    """Run a command, which must succeed; returns what it says on stderr."""

    def run(*arguments: str) -> str:
        result = daguerre(
            *arguments,
            database_url=settings.database_url,
            DAGUERRE_STORAGE=str(settings.storage_folder),
            DAGUERRE_RENDITIONS_DIR=str(settings.renditions_folder),
        )
        assert result.returncode == 0, result.stderr
        return result.stderr

    return run


async def upload(api: Client, tenant: Tenant) -> Any:
    return await api.post("/v1/images", data=jpeg(), headers=tenant.headers | JPEG_TYPE)


async def wait_status(get: Callable[[], Awaitable[Any]], status: int) -> float:
    """Returns the seconds until a request has this status."""

    async def is_so() -> bool:
        return bool((await get()).status == status)

    began = time.monotonic()
    await until(is_so)
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/images"),
        ("GET", "/v1/images?url=https://example.com/a.jpg"),
        ("GET", "/v1/images/AAAAAAA"),
        ("GET", "/v1/images/search"),
        ("DELETE", "/v1/images/AAAAAAA"),
        ("PUT", "/v1/images/AAAAAAA/tags"),
        ("GET", "/v1/account"),
    ],
)
async def test_a_suspended_key_is_refused(
    api: Client, connection: Any, tenant: Tenant, new_tenant: NewTenant, method: str, path: str
) -> None:
    other = await new_tenant()
    await suspend_account(connection, tenant.name, stop_delivery=None)
    answer = await api.request(method, path, data=jpeg(), headers=tenant.headers | JPEG_TYPE)
    assert (await error_of(answer))[:2] == SUSPENDED
    assert (await api.get("/v1/account", headers=other.headers)).status == 200


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
async def test_suspension_and_resumption_apply_soon(api: Client, tenant: Tenant, cli: Cli) -> None:
    """Also of pictures in memory. By default they are delivered on."""
    image_id = await upload_image(api, tenant)

    async def show() -> Any:
        return await api.get(f"/i/{image_id}")

    async def account() -> Any:
        return await api.get("/v1/account", headers=tenant.headers)

    assert (await show()).status == (await account()).status == 200
    assert "still delivered" in cli("accounts", "suspend", tenant.name)
    assert await wait_status(account, 403) < 5.5
    assert (await show()).status == 200
    assert "are refused too" in cli("accounts", "suspend", tenant.name, "--stop-delivery")
    assert await wait_status(show, 403) < 5.5
    assert (await error_of(await show()))[:2] == SUSPENDED
    assert (await error_of(await api.get(f"/i/{image_id}?width=20")))[:2] == SUSPENDED
    assert "are refused too" in cli("accounts", "suspend", tenant.name)  # what is not named stays
    cli("accounts", "resume", tenant.name)
    assert await wait_status(show, 200) < 5.5
    assert await wait_status(account, 200) < 5.5


async def test_an_upload_in_flight_is_refused_and_removed(
    api: Client, connection: Any, tenant: Tenant, settings: Settings
) -> None:
    suspended = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield bytes(300 << 10)  # as much as is written at once
        await suspended.wait()
        yield bytes(100)

    sending = asyncio.create_task(api.post("/v1/images", data=body(), headers=tenant.headers | JPEG_TYPE))
    await until(lambda: stored_files(settings))
    await suspend_account(connection, tenant.name, stop_delivery=None)
    suspended.set()
    assert (await error_of(await sending))[:2] == SUSPENDED
    assert stored_files(settings) == []
    assert await connection.fetchval("select count(*) from images") == 0


async def test_suspended_account_stops_no_other_upload(
    connection: Any, settings: Settings, new_tenant: NewTenant
) -> None:
    """Uploads of several accounts are inserted in one statement."""
    tenants = [await new_tenant() for _ in range(3)]
    await suspend_account(connection, tenants[1].name, stop_delivery=None)
    await connection.execute("delete from accounts where id = $1", tenants[2].id)
    images = [NewImage(ImageId(f"{number}AAAAAA"), tenant.id, 10, b"", []) for number, tenant in enumerate(tenants)]
    async with Database.open(settings.database_url, connections=1) as database:
        outcomes = await insert_pending(database, images)
    assert [outcome and str(outcome).partition(":")[0] for outcome in outcomes] == [
        None,
        "account-suspended",
        "unauthorized",
    ]
    assert await connection.fetch("select id from images") == [("0AAAAAA",)]


async def test_a_deletion_cannot_be_resumed(connection: Any, tenant: Tenant) -> None:
    await start_deletion(connection, tenant.id)
    with pytest.raises(AccountBeingDeleted):
        await resume_account(connection, tenant.name)
    with pytest.raises(AccountBeingDeleted):
        await suspend_account(connection, tenant.name, stop_delivery=False)


@pytest.mark.usefixtures("worker")
async def test_a_quota_is_raised_and_lowered(api: Client, tenant: Tenant, cli: Cli, settings: Settings) -> None:
    await upload_image(api, tenant)
    assert "It stores" in cli("accounts", "set", tenant.name, "--max-storage", "100")
    await until_code(api, tenant, "quota-exceeded")
    assert (await verify(settings)).is_well  # the operator has wanted it
    assert "It stores" not in cli("accounts", "set", tenant.name, "--max-storage", "5GB")

    async def stores() -> bool:
        return bool((await upload(api, tenant)).status == 200)

    await until(stores)
    account = (await (await api.get("/v1/account", headers=tenant.headers)).json())["response"]
    assert (account["num_images"], account["storage"]["max"]) == (2, 5 << 30)


async def until_code(api: Client, tenant: Tenant, code: str) -> None:
    async def is_so() -> bool:
        return bool((await error_of(await upload(api, tenant)))[1] == code)

    await until(is_so)


async def test_verify_reports_an_image_over_the_quota(
    connection: Any, tenant: Tenant, cli: Cli, settings: Settings, api: Client
) -> None:
    cli("accounts", "set", tenant.name, "--max-storage", "100")
    await connection.execute(
        "insert into images (id, account_id, size, sha256, state) values ('AAAAAAA', $1, 1000, '', 'ready')", tenant.id
    )
    await connection.execute("update accounts set used_bytes = 1000, num_images = 1")
    problems = (await verify(settings)).problems
    assert any("it stores 1000 bytes, more than its quota of 100 bytes" in problem for problem in problems)
