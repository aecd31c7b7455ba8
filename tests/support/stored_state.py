"""What PostgreSQL and the storage contain after a test."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.config.settings import Settings
from service.ids import ImageId
from service.queue import jobs
from service.storage.local.originals import LocalOriginals
from tests.support.samples import stored_files
from tests.support.waiting import until
from worker.cron.sweep import sweep
from worker.resources import open_resources


@dataclass(frozen=True)
class StoredState:
    """What PostgreSQL and the storage contain. The test has only one account."""

    connection: Any
    settings: Settings

    def path(self, image_id: str) -> Path:
        return LocalOriginals(self.settings.storage_folder).path(ImageId(image_id))

    async def wait_row(self) -> str:
        """Returns the id of the only image when its row is committed."""
        return str(await until(lambda: self.connection.fetchval("select id from images")))

    async def wait_stored(self) -> Path:
        """Returns the path of the only image when its file is published."""
        path = self.path(await self.wait_row())
        await until(path.exists)
        return path

    async def assert_holds(self, bodies: dict[str, bytes]) -> None:
        """Asserts that exactly these images are stored, by id, and that all are ready and counted."""
        rows = await self.connection.fetch(
            "select id, size from images where state = 'ready' and width is not null and mini_preview is not null"
        )
        assert await self.connection.fetchval("select count(*) from images") == len(rows)
        assert {row["id"]: row["size"] for row in rows} == {name: len(body) for name, body in bodies.items()}
        counters = await self.connection.fetchrow("select num_images, used_bytes from accounts")
        assert tuple(counters) == (len(bodies), sum(map(len, bodies.values())))
        assert {path.name: path.read_bytes() for path in stored_files(self.settings)} == bodies

    async def sweep_after(self, seconds: float) -> None:
        """Makes all unfinished work `seconds` older, then sweeps once."""
        for table, column in (("images", "created_at"), ("removals", "removed_at")):
            await self.connection.execute(
                f"update {table} set {column} = {column} - $1::float8 * interval '1 s'", seconds
            )
        for path in (self.settings.storage_folder / "incoming").iterdir():
            os.utime(path, (path.stat().st_mtime - seconds,) * 2)
        redis = jobs.open_redis(self.settings.redis_url)
        async with open_resources(self.settings, redis) as resources:
            await sweep({"resources": resources})
        await redis.aclose(close_connection_pool=True)
