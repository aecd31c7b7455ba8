"""PostgreSQL of a provider: an ordinary role owns the database, and may do nothing else on the server.

`test_tls.py` and `test_pooler.py` use such roles for everything else.
"""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

from service.config.settings import Settings
from service.schema.changes import create_schema
from service.schema.definition import Schema
from tests.conftest import Servers
from tests.e2e.conftest import OwnedDatabase
from tests.support.journey import succeed

pytestmark = pytest.mark.slow


async def test_backup_is_restored_without_a_superuser(
    servers: Servers, owned_database: OwnedDatabase, settings: Settings, tmp_path: Path
) -> None:
    url = owned_database.url(servers)
    await create_schema(url)
    place = settings.model_copy(update={"database_url": url})
    succeed(place, "accounts", "create", "shop")
    (settings.storage_folder / "incoming").mkdir(exist_ok=True)
    (tmp_path / "daguerre").mkdir()
    succeed(place, "backup", str(tmp_path / "backup"))
    connection = await asyncpg.connect(url)
    await connection.execute(f"drop table {', '.join(Schema.load().tables)}; drop function keep_image_tags")
    await connection.close()
    changes = {"data": tmp_path / "data", "storage": tmp_path / "storage", "renditions_dir": tmp_path / "new"}
    succeed(place.model_copy(update=changes), "restore", str(tmp_path / "backup"))
    assert "shop" in succeed(place, "accounts", "list")
