"""docs/backup.md: a backup that is made in the documented order can be restored."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from service.api.app import create_app
from service.config.settings import Settings
from service.launcher.embedded import binaries
from service.launcher.embedded.postgres import Postgres
from tests.conftest import Client, Servers, Tenant, run_worker
from tests.support.api import upload_image
from tests.support.samples import jpeg
from tests.support.verify import verify

pytestmark = pytest.mark.slow


@pytest.fixture
async def target_database(servers: Servers, connection: Any) -> AsyncIterator[str]:
    """Yields the URL of an empty database."""
    await connection.execute("create database restored")
    yield servers.postgres.dsn_of("restored")
    await connection.execute("drop database restored with (force)")


def run_program(postgres: Postgres, name: str, *arguments: str | Path) -> None:
    programs = binaries.postgres_bin(postgres.folder, postgres.user)
    subprocess.run([programs / name, *arguments], check=True, timeout=60)


async def test_live_backup_can_be_restored(
    settings: Settings,
    servers: Servers,
    api: Client,
    tenant: Tenant,
    worker: None,
    target_database: str,
    tmp_path: Path,
    aiohttp_client: Callable[..., Awaitable[Client]],
) -> None:
    bodies = [jpeg(width) for width in range(40, 45)]
    stored = {await upload_image(api, tenant, body): body for body in bodies}
    deleted = next(iter(stored))

    run_program(servers.postgres, "pg_dump", "-Fc", "-d", settings.database_url, "-f", tmp_path / "dump")
    assert (await api.delete(f"/v1/images/{deleted}", headers=tenant.headers)).status == 200
    late = await upload_image(api, tenant, jpeg(50))
    shutil.copytree(settings.storage_folder, tmp_path / "copy")
    run_program(servers.postgres, "pg_restore", "-d", target_database, "--exit-on-error", tmp_path / "dump")

    restored = settings.model_copy(
        update={
            "database_url": target_database,
            "storage": tmp_path / "copy",
            "redis_url": settings.redis_url.replace("db=0", "db=1"),
        }
    )
    result = await verify(restored, repair=True, drop_missing=True)
    assert result.is_well
    assert result.problems[0] == f"image {deleted}: its file is missing; deleted"
    assert f"{late}: no image belongs to it; moved to" in result.problems[1]
    assert len(result.problems) == 2
    expected = {image_id: hashlib.sha256(body).digest() for image_id, body in stored.items() if image_id != deleted}
    assert (await verify(restored, expected=expected)).problems == []

    restored_api = await aiohttp_client(create_app(restored))
    async with run_worker(restored):
        for image_id in expected:
            assert (await restored_api.get(f"/v1/images/{image_id}", headers=tenant.headers)).status == 200
        await upload_image(restored_api, tenant, jpeg(60))
    assert (await verify(restored)).problems == []


async def test_dump_contains_no_key(settings: Settings, servers: Servers, tenant: Tenant, tmp_path: Path) -> None:
    run_program(servers.postgres, "pg_dump", "-d", settings.database_url, "-f", tmp_path / "dump")
    dump = (tmp_path / "dump").read_text()
    assert tenant.name in dump
    assert tenant.key not in dump
