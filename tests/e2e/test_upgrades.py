"""Upgrades of a running service: processes of the version before work beside those of this one, on upgraded tables."""

from __future__ import annotations

import asyncio
import io
import itertools
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from PIL import Image

from service.config.settings import Settings
from service.schema.changes import upgrade_schema
from service.schema.definition import Schema
from tests.conftest import Servers
from tests.support import version_before
from tests.support.daguerre_processes import Daguerre, processes_of
from tests.support.samples import jpeg
from tests.support.schema_shapes import describe_shape

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("git"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(180),
]

_numbers = itertools.count()


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """Returns a folder with the code of the version before. Skips the test if the history is not there."""
    try:
        commit = version_before.find_commit()
    except version_before.HistoryMissing as error:
        pytest.skip(str(error))
    version_before.check_out(commit, tmp_path / "before")
    return tmp_path / "before"


@pytest.fixture
async def url_before(servers: Servers, before: Path) -> AsyncIterator[str]:
    """Yields the URL of a database with the tables of the version before."""
    name = f"before_{next(_numbers)}"
    admin = await asyncpg.connect(servers.postgres.dsn)
    await admin.execute(f"create database {name}")
    url = servers.postgres.dsn_of(name)
    await asyncio.to_thread(version_before.run, before, "schema", DAGUERRE_DATABASE_URL=url)
    yield url
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


async def test_tables_of_the_version_before_are_upgraded(
    url_before: str, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    older = await asyncpg.connect(url_before)
    versions = "select array_agg(version order by version) from applied_schema"
    assert await older.fetchval(versions) == [Schema.load().version - 1]
    await upgrade_schema(url_before)
    assert await describe_shape(older) == await describe_shape(connection)
    await older.close()


@pytest.mark.parametrize("replaced", ["api", "worker"])
async def test_one_half_is_upgraded_before_the_other(
    before: Path, url_before: str, settings: Settings, tmp_path: Path, replaced: str
) -> None:
    output = version_before.run(before, "accounts", "create", "demo", DAGUERRE_DATABASE_URL=url_before)
    changed = settings.model_copy(update={"database_url": url_before})
    old_code = {"PYTHONPATH": str(before)}
    async with processes_of(changed, output.split()[-1], tmp_path / "logs") as daguerre:
        parts = {"api": daguerre.start_api(old_code), "worker": daguerre.start_worker(old_code)}
        await daguerre.wait_ready()
        stored = await upload_and_render(daguerre, 300)
        await upgrade_schema(url_before)
        await upload_and_render(daguerre, 320)  # both are still the version before
        parts[replaced].send(signal.SIGTERM)
        assert await parts[replaced].exit_code() == 0
        if replaced == "api":
            daguerre.start_api()
        else:
            daguerre.start_worker()
        await daguerre.wait_ready()
        await upload_and_render(daguerre, 340)
        assert (await daguerre.show(stored)).result["width"] == 300
        assert await render(daguerre, stored, 24) == (24, 16)


async def upload_and_render(daguerre: Daguerre, width: int) -> str:
    """Returns the id of a new image, after a rendition of it was made, and another image was stored and deleted."""
    uploaded = await daguerre.upload(jpeg(width, 200), tags="a")
    assert (uploaded.status, uploaded.result["width"]) == (200, width)
    image_id = str(uploaded.result["id"])
    assert (await render(daguerre, image_id, 20))[0] == 20
    other = (await daguerre.upload(jpeg(width, 100))).result["id"]
    async with daguerre.session.delete(f"/v1/images/{other}", params={"key": daguerre.key}) as response:
        assert response.status == 200
    assert (await daguerre.show(other)).status == 404
    return image_id


async def render(daguerre: Daguerre, image_id: str, width: int) -> tuple[int, int]:
    """Returns the size of the rendition."""
    async with daguerre.session.get(f"/i/{image_id}", params={"width": str(width)}) as response:
        assert response.status == 200
        return Image.open(io.BytesIO(await response.read())).size
