"""When an API process creates the folders of a storage, and when it must not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from service.api.resources import open_resources
from service.config.settings import Settings, SettingsError
from service.ids import ImageId
from service.storage.local.originals import LocalOriginals
from tests.conftest import Tenant
from tests.support.samples import insert_image


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """With a storage whose disk is not mounted."""
    mount = tmp_path / "mount"
    mount.mkdir()
    return settings.model_copy(update={"storage": mount})


async def start(settings: Settings) -> None:
    async with open_resources(settings):
        pass


@pytest.mark.parametrize("state", ["ready", "pending"])
async def test_unmounted_storage_is_not_recreated(
    settings: Settings, connection: Any, tenant: Tenant, state: str
) -> None:
    await insert_image(connection, tenant, "IMAGE01", state=state)
    mount = settings.storage_folder
    with pytest.raises(SettingsError, match=rf"{re.escape(str(mount))} cannot be used: .* mount that disk"):
        await start(settings)
    assert list(mount.iterdir()) == []
    (mount / "incoming").mkdir()
    with pytest.raises(SettingsError, match=rf"{re.escape(str(mount))} cannot be used: .* mount that disk"):
        await start(settings)
    assert [path.name for path in mount.iterdir()] == ["incoming"]
    (mount / "incoming" / "IMAGE01").touch()  # as the disk has it
    await start(settings)


async def test_one_file_of_many_images_is_enough(settings: Settings, connection: Any, tenant: Tenant) -> None:
    for number in range(10):
        await insert_image(connection, tenant, f"IMAGE0{number}")
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    storage.path(ImageId("IMAGE07")).touch()
    await start(settings)
    assert await connection.fetchval("select count(*) from storage") == 1


async def test_storage_is_made_if_no_image_has_a_file(settings: Settings, connection: Any, tenant: Tenant) -> None:
    await insert_image(connection, tenant, "IMAGE01", state="failed")
    await start(settings)
    assert (settings.storage_folder / "incoming").is_dir()


async def test_storage_is_made_before_the_tables(settings: Settings, connection: Any) -> None:
    await connection.execute("alter table images rename to others")
    try:
        await start(settings)
    finally:
        await connection.execute("alter table others rename to images")
    assert (settings.storage_folder / "incoming").is_dir()


async def test_storage_is_not_made_without_postgres(settings: Settings) -> None:
    away = settings.model_copy(update={"database_url": "postgresql://daguerre@127.0.0.1:1/daguerre"})
    with pytest.raises(SettingsError, match="PostgreSQL, which knows whether it should be, is unavailable"):
        await start(away)
    assert list(settings.storage_folder.iterdir()) == []


async def test_another_process_may_make_the_storage(
    settings: Settings, connection: Any, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await insert_image(connection, tenant, "IMAGE01")
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    storage.path(ImageId("IMAGE01")).touch()
    answers = iter([True, False])
    monkeypatch.setattr(LocalOriginals, "is_new", lambda _: next(answers))
    await start(settings)
    assert (settings.storage_folder / "incoming").is_dir()
