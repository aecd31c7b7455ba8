"""`daguerre accounts delete` removes everything, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from service.accounts.accounts import finish_deletion, start_deletion
from service.accounts.presets import set_preset
from service.accounts.signing_keys import create_signing_key
from service.config.settings import Settings
from service.database import Database
from service.deletion.accounts import AccountDeletion
from service.ids import ImageId
from service.images.updates import delete_failed_batch, delete_stored_batch
from service.queue.jobs import open_redis
from service.renditions.parsing import check_preset
from service.storage.local.originals import LocalOriginals
from service.storage.local.renditions import LocalRenditions
from tests.conftest import Client, NewTenant, Tenant, resources_of
from tests.support.api import error_of, upload_image
from tests.support.commands import daguerre
from tests.support.samples import JPEG_TYPE, jpeg, stored_files
from tests.support.verify import verify
from tests.support.waiting import until
from worker.cron.sweep import sweep
from worker.resources import open_resources

pytestmark = pytest.mark.slow

TABLES = ("accounts", "api_keys", "signing_keys", "presets", "images", "image_tags", "removals", "renditions")


def environment_of(settings: Settings) -> dict[str, str]:
    return {
        "DAGUERRE_DATABASE_URL": settings.database_url,
        "DAGUERRE_STORAGE": str(settings.storage_folder),
        "DAGUERRE_RENDITIONS_DIR": str(settings.renditions_folder),
    }


def delete(settings: Settings, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    return daguerre("accounts", "delete", name, *options, **environment_of(settings))


def rendition_files(settings: Settings) -> list[Path]:
    return [path for path in settings.renditions_folder.rglob("*") if path.is_file()]


async def fill(connection: Any, tenant: Tenant, settings: Settings, count: int) -> None:
    """Rows and files of images, as many uploads would leave them, without their previews."""
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    body = jpeg()
    names = [f"{number:07d}" for number in range(count)]
    await connection.execute(
        """
        insert into images (id, account_id, size, sha256, state, tags)
        select id, $2, $3, $4, 'ready', '{lake}' from unnest($1::text[]) as id
        """,
        names,
        tenant.id,
        len(body),
        hashlib.sha256(body).digest(),
    )
    await connection.execute(
        "update accounts set used_bytes = $2, num_images = $3 where id = $1", tenant.id, len(body) * count, count
    )
    for name in names:
        storage.path(ImageId(name)).write_bytes(body)


@pytest.mark.usefixtures("worker")
async def test_everything_of_an_account_is_deleted(
    api: Client, connection: Any, tenant: Tenant, new_tenant: NewTenant, settings: Settings
) -> None:
    other = await new_tenant()
    ids = [await upload_image(api, tenant) for _ in range(3)]
    kept_id = await upload_image(api, other)
    for image_id in (*ids, kept_id):
        assert (await api.get(f"/i/{image_id}?width=20&watermark={image_id}")).status == 200
        await api.put(f"/v1/images/{image_id}/tags?tags=a", headers=(other if image_id == kept_id else tenant).headers)
    await until(lambda: count(connection, "renditions", 4))
    await create_signing_key(connection, tenant.name)
    await set_preset(connection, tenant.name, "thumb", check_preset("width=20"))
    await connection.execute("update images set state = 'pending' where id = $1", ids[1])
    await connection.execute(
        "insert into images (id, account_id, size, sha256, state, error, failed_at)"
        " values ('FAILED1', $1, 9, '', 'failed', 'damaged-image', now())",
        tenant.id,
    )
    result = delete(settings, tenant.name, "--yes")
    assert result.returncode == 0, result.stderr
    assert result.stderr == f"3 images deleted\nAccount {tenant.name!r} is deleted.\n"
    remaining = {table: await connection.fetchval(f"select count(*) from {table}") for table in TABLES}
    assert remaining == dict.fromkeys(TABLES, 0) | {
        "accounts": 1, "api_keys": 1, "images": 1, "image_tags": 1, "renditions": 1,
    }  # fmt: skip
    assert [path.name for path in stored_files(settings)] == [kept_id]
    assert [path.name.partition("-")[0] for path in rendition_files(settings)] == [kept_id]
    assert (await verify(settings)).is_well
    for image_id in ids:  # from memory for some seconds at most
        await until(partial(is_status, api, f"/i/{image_id}", 404))
    await until(lambda: is_status(api, "/v1/account", 401, tenant))
    assert (await api.get(f"/i/{kept_id}?width=20")).status == 200


async def count(connection: Any, table: str, expected: int) -> bool:
    return bool(await connection.fetchval(f"select count(*) from {table}") == expected)


async def is_status(api: Client, path: str, status: int, tenant: Tenant | None = None) -> bool:
    answer = await api.get(path, headers=tenant.headers if tenant else {})
    assert answer.status < 500
    return answer.status == status


async def test_deletion_needs_a_terminal_or_yes(connection: Any, tenant: Tenant, settings: Settings) -> None:
    await fill(connection, tenant, settings, 3)
    result = delete(settings, tenant.name)
    assert result.returncode != 0
    assert "3 images (" in result.stderr
    assert "--yes" in result.stderr
    assert await connection.fetchval("select count(*) from accounts where suspended_at is null") == 1
    assert len(stored_files(settings)) == 3


@pytest.mark.parametrize(("reply", "remaining"), [(b"n\n", 3), (b"\n", 3), (b"y\n", 0)])
async def test_deletion_asks_for_confirmation(
    connection: Any, tenant: Tenant, settings: Settings, reply: bytes, remaining: int
) -> None:
    await fill(connection, tenant, settings, 3)
    terminal, other_end = pty.openpty()
    os.write(terminal, reply)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.cli", "accounts", "delete", tenant.name),
        env={"PATH": os.environ["PATH"], **environment_of(settings)},
        stdin=other_end,
        stderr=subprocess.PIPE,
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 40)
    os.close(terminal)
    os.close(other_end)
    assert b"with 3 images" in stderr
    assert process.returncode == (1 if remaining else 0), stderr
    assert len(stored_files(settings)) == remaining


async def test_newer_account_of_the_name_is_kept(
    connection: Any, tenant: Tenant, new_tenant: NewTenant, settings: Settings
) -> None:
    """Another command deletes the account during the confirmation, and creates one of the same name."""
    await fill(connection, tenant, settings, 3)
    terminal, other_end = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.cli", "accounts", "delete", tenant.name),
        env={"PATH": os.environ["PATH"], **environment_of(settings)},
        stdin=other_end,
        stderr=subprocess.PIPE,
    )
    assert process.stderr
    assert b"with 3 images" in await asyncio.wait_for(process.stderr.readuntil(b"[y/N]"), 40)
    assert delete(settings, tenant.name, "--yes").returncode == 0
    newer = await new_tenant()
    await connection.execute("update accounts set name = $2 where id = $1", newer.id, tenant.name)
    os.write(terminal, b"y\n")
    stderr = await asyncio.wait_for(process.stderr.read(), 40)
    os.close(terminal)
    os.close(other_end)
    assert stderr.decode().endswith(f"Error: Account {tenant.name!r} was deleted by another command meanwhile.\n")
    assert await process.wait() == 1
    assert await connection.fetchval("select count(*) from accounts where suspended_at is null") == 1


async def test_ctrl_c_says_how_to_resume(connection: Any, tenant: Tenant, settings: Settings) -> None:
    await fill(connection, tenant, settings, 3)
    holder = await asyncpg.connect(settings.database_url)
    hold = holder.transaction()
    await hold.start()
    await holder.execute("select from images for update")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.cli", "accounts", "delete", tenant.name, "--yes"),
        env={"PATH": os.environ["PATH"], **environment_of(settings)},
        stderr=subprocess.PIPE,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # ignored in a background job
    )

    async def is_blocked() -> bool:
        """Whether the command's statement waits for the rows that are held."""
        waiting = "datname = current_database() and wait_event_type = 'Lock'"
        return bool(await connection.fetchval(f"select count(*) from pg_stat_activity where {waiting}"))

    await until(is_blocked, 40)
    process.send_signal(signal.SIGINT)
    _, stderr = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode == 1
    assert stderr == b"Error: Interrupted. Run the command again to continue.\n"
    await hold.rollback()
    await holder.close()


async def test_a_killed_deletion_is_resumed(connection: Any, tenant: Tenant, settings: Settings) -> None:
    """Also if the server commits a batch after the command was killed."""
    await fill(connection, tenant, settings, 1200)
    holder = await asyncpg.connect(settings.database_url)
    hold = holder.transaction()
    await hold.start()
    await holder.execute("select from images where id = '0001199' for update")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.cli", "accounts", "delete", tenant.name, "--yes"),
        env={"PATH": os.environ["PATH"], **environment_of(settings)},
        stderr=subprocess.PIPE,
    )

    async def has_begun() -> bool:
        return bool(await connection.fetchval("select count(*) from images") == 200)

    await until(has_begun, 40)
    process.kill()
    await process.wait()
    await hold.rollback()
    await holder.close()
    listed = daguerre("accounts", "list", database_url=settings.database_url).stdout
    assert "being deleted" in listed
    result = daguerre("accounts", "resume", tenant.name, database_url=settings.database_url)
    assert result.returncode == 1
    assert "is being deleted" in result.stderr
    result = delete(settings, tenant.name, "--yes")
    assert result.returncode == 0, result.stderr
    assert stored_files(settings) == []
    # A file may have been removed before the kill, with its removal still recorded. The sweep clears that.
    await connection.execute("update removals set removed_at = now() - interval '1 minute'")
    async with open_resources(settings, open_redis(settings.redis_url)) as resources:
        await sweep({"resources": resources})
    assert [await connection.fetchval(f"select count(*) from {table}") for table in TABLES] == [0] * len(TABLES)
    assert (await verify(settings)).is_well


async def test_upload_in_flight_leaves_nothing(
    api: Client, connection: Any, tenant: Tenant, settings: Settings
) -> None:
    deleted = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield bytes(300 << 10)  # as much as is written at once
        await deleted.wait()
        yield bytes(100)

    path = "/v1/images?with_account"
    sending = asyncio.create_task(api.post(path, data=body(), headers=tenant.headers | JPEG_TYPE))
    await until(lambda: stored_files(settings))
    assert delete(settings, tenant.name, "--yes").returncode == 0
    deleted.set()
    assert (await error_of(await sending))[:2] == (401, "unauthorized")
    assert stored_files(settings) == []
    assert await connection.fetchval("select count(*) from images") == 0


@pytest.mark.settings(wait_s=0.1)
async def test_racing_uploads_leave_nothing(api: Client, connection: Any, tenant: Tenant, settings: Settings) -> None:
    answers: list[int] = []

    async def send() -> None:
        while not answers or answers[-1] != 401:
            answer = await api.post("/v1/images", data=jpeg(), headers=tenant.headers | JPEG_TYPE)
            answers.append(answer.status)

    sending = [asyncio.create_task(send()) for _ in range(4)]
    await until(lambda: count_at_least(connection, 5))
    result = await asyncio.to_thread(delete, settings, tenant.name, "--yes")
    assert result.returncode == 0, result.stderr
    await asyncio.gather(*sending)
    assert set(answers) <= {200, 202, 401, 403, 404}
    assert stored_files(settings) == []
    assert await connection.fetchval("select count(*) from images") == 0


async def count_at_least(connection: Any, expected: int) -> bool:
    return bool(await connection.fetchval("select count(*) from images") >= expected)


async def test_files_elsewhere_are_left_to_workers(
    connection: Any, tenant: Tenant, settings: Settings, tmp_path: Path
) -> None:
    """The command may run on another storage than the workers', where it must not clear the recorded removals."""
    await fill(connection, tenant, settings, 3)
    elsewhere = settings.model_copy(update={"storage": tmp_path / "elsewhere"})
    LocalOriginals(elsewhere.storage_folder).prepare()
    result = delete(elsewhere, tenant.name, "--yes")
    assert result.returncode == 0
    assert f"3 files of deleted images were not in {elsewhere.storage_folder}" in result.stderr
    assert await connection.fetchval("select count(*) from removals") == 3
    async with Database.open(settings.database_url, connections=1) as database:
        files = LocalRenditions(settings.renditions_folder)
        assert await AccountDeletion(database, LocalOriginals(settings.storage_folder), files).remove_remaining() == 0
    assert stored_files(settings) == []
    assert await connection.fetchval("select count(*) from removals") == 0


async def test_missing_storage_begins_no_deletion(
    connection: Any, tenant: Tenant, settings: Settings, tmp_path: Path
) -> None:
    await fill(connection, tenant, settings, 3)
    result = delete(settings.model_copy(update={"storage": tmp_path / "nothing"}), tenant.name, "--yes")
    assert result.returncode == 1
    assert "cannot be used" in result.stderr
    assert await connection.fetchval("select count(*) from accounts where suspended_at is null") == 1


async def test_late_row_is_deleted_too(connection: Any, tenant: Tenant, settings: Settings) -> None:
    """A process of an older version, which knows no suspension, may insert it after the last batch."""
    await fill(connection, tenant, settings, 1)
    await start_deletion(connection, tenant.id)
    assert await finish_deletion(connection, tenant.id) is False
    async with Database.open(settings.database_url, connections=1) as database:
        deletion = AccountDeletion(
            database, LocalOriginals(settings.storage_folder), LocalRenditions(settings.renditions_folder)
        )
        assert [deleted async for deleted in deletion.run(tenant.id)] == [1]
    assert await connection.fetchval("select count(*) from accounts") == 0


async def test_deleted_batch_is_credited(connection: Any, tenant: Tenant, settings: Settings) -> None:
    await fill(connection, tenant, settings, 3)
    assert len(await delete_stored_batch(connection, tenant.id, 2)) == 2
    row = await connection.fetchrow("select num_images, used_bytes from accounts")
    assert tuple(row) == (1, len(jpeg()))
    assert len(await delete_stored_batch(connection, tenant.id, 2)) == 1
    assert await delete_stored_batch(connection, tenant.id, 2) == []
    assert await delete_failed_batch(connection, tenant.id, 2) == []
    assert tuple(await connection.fetchrow("select num_images, used_bytes from accounts")) == (0, 0)


@pytest.mark.usefixtures("worker")
async def test_cached_picture_is_not_found(api: Client, connection: Any, tenant: Tenant) -> None:
    """A process may cache an image for longer than its account. It was a 500, and one for every picture looked up at
    that moment.
    """
    image_id = ImageId(await upload_image(api, tenant))
    subjects = resources_of(api).delivery.image_cache
    assert await subjects.find(image_id) is not None
    await connection.execute("delete from images")
    await connection.execute("delete from accounts")
    subjects._policies.clear()
    assert (await error_of(await api.get(f"/i/{image_id}")))[:2] == (404, "image-not-found")


async def test_cached_key_is_refused(api: Client, connection: Any, tenant: Tenant) -> None:
    assert (await api.get("/v1/account", headers=tenant.headers)).status == 200
    await connection.execute("delete from accounts")
    assert (await error_of(await api.get("/v1/account", headers=tenant.headers)))[:2] == (401, "unauthorized")
    response = await api.get("/v1/images/search?with_account", headers=tenant.headers)
    assert (response.status, (await response.json())["response"]["images"]) == (200, [])
