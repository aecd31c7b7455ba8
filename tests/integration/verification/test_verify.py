"""`daguerre verify` reports what is wrong, repairs what it can, and leaves everything else alone."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from service.config.settings import Settings, SettingsError
from service.config.values import format_size
from service.ids import ImageId
from service.queue import jobs
from service.queue.jobs import PROBE_QUEUE
from service.schema.definition import Schema
from service.storage.local.originals import LocalOriginals
from tests.conftest import Client, Tenant
from tests.support.commands import daguerre
from tests.support.disks import prepare_identified
from tests.support.samples import jpeg, stored_files
from tests.support.verify import ID, PICTURE, insert, put, verify


@pytest.fixture(autouse=True)
async def storage(settings: Settings, connection: Any) -> LocalOriginals:
    return await prepare_identified(settings, connection)


async def test_uploaded_images_have_no_problems(settings: Settings, api: Client, tenant: Tenant, worker: None) -> None:
    stored = {}
    for width in (40, 50):
        body = jpeg(width)
        answer = await api.post("/v1/images", data=body, headers=tenant.headers | {"Content-Type": "image/jpeg"})
        stored[ImageId((await answer.json())["response"]["id"])] = hashlib.sha256(body).digest()
    result = await verify(settings, expected=stored)
    assert result.is_well, result.problems
    assert result.problems == []
    assert result.summary.startswith("2 images, ")
    assert result.summary.endswith(": no problems.")


@pytest.mark.parametrize("folder", ["published", "incoming"])
async def test_file_may_be_in_either_folder(
    settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant, folder: str
) -> None:
    await insert(connection, tenant)
    put(storage.path(ID) if folder == "published" else storage.incoming_path(ID))
    assert (await verify(settings)).is_well


class TestContent:
    async def test_missing_file_is_dropped_on_request(
        self, settings: Settings, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        result = await verify(settings, repair=True)
        assert not result.is_well
        assert result.problems == [f"image {ID}: its file is missing"]
        assert result.summary.startswith("1 image, ")
        assert result.summary.endswith(": 1 problem, 0 repaired.")
        result = await verify(settings, drop_missing=True)
        assert result.is_well
        assert result.problems == [f"image {ID}: its file is missing; deleted"]
        assert (await verify(settings)).problems == []
        assert tuple(await connection.fetchrow("select num_images, used_bytes from accounts")) == (0, 0)

    async def test_nothing_dropped_if_most_are_missing(
        self, settings: Settings, connection: Any, tenant: Tenant
    ) -> None:
        for number in range(11):
            await insert(connection, tenant, image_id=f"Image{number:02}")
        result = await verify(settings, repair=True, drop_missing=True)
        assert result.problems[-1].startswith("storage: 11 of 11 files are missing, so no image was deleted")
        assert await connection.fetchval("select count(*) from images") == 11

    async def test_truncated_file_is_reported(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        put(storage.path(ID), PICTURE[:-1])
        result = await verify(settings, read=False)
        assert result.problems == [f"image {ID}: its file has {len(PICTURE) - 1} bytes instead of {len(PICTURE)}"]

    async def test_flipped_bit_is_found_by_reading(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        put(storage.path(ID), PICTURE[:-1] + bytes([PICTURE[-1] ^ 1]))
        result = await verify(settings)
        assert result.problems == [f"image {ID}: its file is not what was sent: the SHA-256 differs"]
        assert (await verify(settings, read=False)).is_well

    async def test_images_of_several_pages_are_checked(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        for number in range(5):
            await insert(connection, tenant, image_id=f"Image0{number}")
            if number != 3:
                put(storage.path(ImageId(f"Image0{number}")))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("service.verification.image_checks.BATCH_SIZE", 2)
            result = await verify(settings)
        assert result.problems == ["image Image03: its file is missing"]
        assert result.summary.startswith("5 images, ")

    async def test_failed_image_needs_no_file(self, settings: Settings, connection: Any, tenant: Tenant) -> None:
        await insert(connection, tenant, state="failed")
        assert (await verify(settings, repair=True)).problems == [
            f"account {tenant.name}: its counters are off by 1 images and {len(PICTURE)} bytes; corrected"
        ]

    async def test_missing_storage_is_one_error(
        self, settings: Settings, connection: Any, tenant: Tenant, tmp_path: Path
    ) -> None:
        await insert(connection, tenant)
        with pytest.raises(SettingsError, match="DAGUERRE_STORAGE"):
            await verify(settings.model_copy(update={"storage": tmp_path / "elsewhere"}))


class TestFiles:
    async def test_orphan_is_quarantined(self, settings: Settings, storage: LocalOriginals) -> None:
        path = put(storage.path(ID))
        assert (await verify(settings)).problems == [f"file {path}: no image belongs to it"]
        assert path.exists()
        result = await verify(settings, repair=True)
        assert result.is_well
        aside = settings.storage_folder / "unclaimed" / ID
        assert result.problems == [f"file {path}: no image belongs to it; moved to {aside}"]
        assert aside.read_bytes() == PICTURE
        assert (await verify(settings)).problems == []

    async def test_recent_removal_is_no_problem(
        self, settings: Settings, storage: LocalOriginals, connection: Any
    ) -> None:
        put(storage.path(ID))
        await connection.execute("insert into removals (image_id) values ($1)", ID)
        assert (await verify(settings)).is_well

    async def test_overdue_removal_is_finished(
        self, settings: Settings, storage: LocalOriginals, connection: Any
    ) -> None:
        path = put(storage.path(ID))
        await connection.execute("insert into removals values ($1, now() - interval '3 minutes')", ID)
        assert (await verify(settings)).problems == [f"image {ID}: it was deleted, but not its file"]
        assert (await verify(settings, repair=True)).is_well
        assert not path.exists()
        assert (await verify(settings)).problems == []

    async def test_failed_removal_is_not_a_repair(
        self, settings: Settings, storage: LocalOriginals, connection: Any
    ) -> None:
        storage.path(ID).mkdir()  # no file, so it cannot be unlinked
        await connection.execute("insert into removals values ($1, now() - interval '3 minutes')", ID)
        result = await verify(settings, repair=True)
        storage.path(ID).rmdir()
        assert not result.is_well
        assert result.problems == [f"image {ID}: it was deleted, but not its file"]

    async def test_upload_in_flight_is_no_problem(self, settings: Settings, storage: LocalOriginals) -> None:
        put(storage.incoming_path(ID), age_s=3600)
        assert (await verify(settings)).is_well

    async def test_stale_upload_is_removed(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant, image_id="BBBBBBB")
        put(storage.path(ImageId("BBBBBBB")))
        path = put(storage.incoming_path(ID), age_s=4300)
        assert (await verify(settings)).problems == [f"file incoming/{ID}: its upload was not finished"]
        assert path.exists()
        assert (await verify(settings, repair=True)).is_well
        assert not path.exists()

    async def test_unpublished_image_is_published(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        put(storage.incoming_path(ID), age_s=4300)
        assert (await verify(settings)).problems == [f"file incoming/{ID}: it was not moved to its folder"]
        assert (await verify(settings, repair=True)).is_well
        assert storage.path(ID).exists()
        assert (await verify(settings)).problems == []

    async def test_repair_never_overwrites_an_image(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        """An upload was received under an id that was taken, and its process ended before it got another id."""
        await insert(connection, tenant)
        stored = put(storage.path(ID))
        put(storage.incoming_path(ID), b"another upload", age_s=5000)
        problem = f"file incoming/{ID}: another image has its id"
        assert (await verify(settings)).problems == [problem]
        assert (await verify(settings, repair=True)).problems == [f"{problem}; removed"]
        assert [(path, path.read_bytes()) for path in stored_files(settings)] == [(stored, PICTURE)]
        assert (await verify(settings)).problems == []

    async def test_orphan_at_final_path_is_quarantined(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        """The process ended between the commit and the move, and the row decides which file is the image."""
        await insert(connection, tenant)
        put(storage.path(ID), b"of no image")
        put(storage.incoming_path(ID), age_s=5000)
        problem = f"file incoming/{ID}: a file of no image has its path"
        assert problem in (await verify(settings)).problems
        result = await verify(settings, repair=True)
        assert f"{problem}; moved, and the other file to `unclaimed`" in result.problems
        assert storage.path(ID).read_bytes() == PICTURE
        assert (settings.storage_folder / "unclaimed" / ID).read_bytes() == b"of no image"
        assert (await verify(settings)).problems == []

    async def test_folder_at_final_path_loses_no_image(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        storage.path(ID).mkdir()
        received = put(storage.incoming_path(ID), age_s=5000)
        result = await verify(settings, repair=True)
        storage.path(ID).rmdir()
        assert f"file incoming/{ID}: another image has its id" in result.problems
        assert received.read_bytes() == PICTURE

    async def test_file_under_both_names_is_repaired(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        os.link(put(storage.incoming_path(ID), age_s=5000), storage.path(ID))
        problem = f"file incoming/{ID}: it was not moved to its folder"
        assert (await verify(settings, repair=True)).problems == [f"{problem}; moved"]
        assert stored_files(settings) == [storage.path(ID)]

    async def test_stuck_file_stops_no_repair(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant, image_id="BBBBBBB")
        put(storage.path(ImageId("BBBBBBB")))
        for name in ("STUCK01", "ZZZZZZ1"):
            storage.incoming_path(ImageId(name)).mkdir()  # no file, so it cannot be unlinked
            os.utime(storage.incoming_path(ImageId(name)), (0, 0))
        put(storage.incoming_path(ID), age_s=5000)
        result = await verify(settings, repair=True)
        for name in ("STUCK01", "ZZZZZZ1"):
            storage.incoming_path(ImageId(name)).rmdir()
        assert sorted(result.problems) == [
            f"file incoming/{ID}: its upload was not finished; removed",
            "file incoming/STUCK01: its upload was not finished",
            "file incoming/ZZZZZZ1: its upload was not finished",
        ]


@pytest.mark.slow
async def test_overdue_image_is_enqueued(
    settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
) -> None:
    await insert(connection, tenant, state="pending", age_s=61)
    await insert(connection, tenant, state="pending", age_s=50, image_id="JustNow")
    put(storage.path(ID))
    put(storage.path(ImageId("JustNow")))
    result = await verify(settings)
    assert [problem.partition(" since")[0] for problem in result.problems] == [
        f"image {ID}: no worker has processed it"
    ]
    assert (await verify(settings, repair=True)).is_well
    redis = jobs.open_redis(settings.redis_url)
    assert await redis.zrange(PROBE_QUEUE, 0, -1) == [ID.encode()]
    await redis.aclose(close_connection_pool=True)


class TestAccounts:
    async def test_wrong_counters_are_corrected(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        put(storage.path(ID))
        await connection.execute("update accounts set used_bytes = used_bytes + 5, num_images = 3")
        problem = f"account {tenant.name}: its counters are off by 2 images and 5 bytes"
        assert (await verify(settings)).problems == [problem]
        assert (await verify(settings, repair=True)).problems == [f"{problem}; corrected"]
        assert (await verify(settings)).problems == []

    async def test_account_over_quota_is_reported(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        put(storage.path(ID))
        await connection.execute("update accounts set max_bytes = $1", len(PICTURE) - 1)
        result = await verify(settings, repair=True)
        assert not result.is_well
        size = format_size(len(PICTURE))
        assert result.problems == [f"account {tenant.name}: it stores {size}, more than its quota of {size}"]


async def test_expected_images_must_be_stored(
    settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
) -> None:
    await insert(connection, tenant)
    put(storage.path(ID))
    right = hashlib.sha256(PICTURE).digest()
    assert (await verify(settings, expected={ID: right})).is_well
    result = await verify(settings, expected={ID: bytes(32), ImageId("Missing"): right})
    assert result.problems == [
        f"image {ID}: its SHA-256 is not the expected one",
        "image Missing: it is expected, but not stored",
    ]


@pytest.mark.slow
async def test_concurrent_work_is_no_problem(settings: Settings, api: Client, tenant: Tenant, worker: None) -> None:
    async def upload_and_delete() -> None:
        headers = tenant.headers | {"Content-Type": "image/jpeg"}
        for _ in range(15):
            answer = await (await api.post("/v1/images", data=PICTURE, headers=headers)).json()
            path = f"/v1/images/{answer['response']['id']}"
            assert (await api.delete(path, headers=tenant.headers)).status == 200

    working = asyncio.gather(*(upload_and_delete() for _ in range(4)))
    result = []
    while not working.done():
        result.append(await verify(settings))
    await working
    assert len(result) > 1
    assert [problem for one in result for problem in one.problems] == []
    assert stored_files(settings) == []


class TestCommand:
    def run(self, settings: Settings, *words: str) -> Any:
        return daguerre(
            "verify",
            *words,
            database_url=settings.database_url,
            DAGUERRE_STORAGE=str(settings.storage_folder),
            DAGUERRE_REDIS_URL=settings.redis_url,
        )

    async def test_exit_code_is_1_until_repaired(self, settings: Settings, storage: LocalOriginals) -> None:
        path = put(storage.path(ID))
        done = self.run(settings)
        assert (done.returncode, done.stderr) == (1, "")
        assert done.stdout.splitlines() == [
            f"file {path}: no image belongs to it",
            "0 images, 0 bytes: 1 problem, 0 repaired.",
        ]
        assert self.run(settings, "--repair").returncode == 0
        done = self.run(settings, "--quick")
        assert (done.returncode, done.stdout) == (0, "0 images, 0 bytes, sizes only: no problems.\n")

    async def test_expected_images_are_read_from_a_file(self, settings: Settings, tmp_path: Path) -> None:
        lines = tmp_path / "expected"
        lines.write_text(f"{ID} {'0' * 64}\n")
        done = self.run(settings, "--expect", str(lines))
        assert done.returncode == 1
        assert f"image {ID}: it is expected, but not stored" in done.stdout
        lines.write_text("AAAAAAA\n")
        done = self.run(settings, "--expect", str(lines))
        assert done.returncode == 2
        assert "line 1 is not `ID SHA256`" in done.stderr

    async def test_older_schema_is_one_sentence(self, settings: Settings, connection: Any) -> None:
        current = Schema.load().version
        await connection.execute("update applied_schema set version = $1", current - 1)
        try:
            done = self.run(settings)
        finally:
            await connection.execute("update applied_schema set version = $1", current)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith(
            f"Error: The database has tables of an older Daguerre (schema {current - 1}; this version needs {current}):"
            " run `daguerre schema upgrade`."
        )

    async def test_database_outage_is_one_sentence(self, settings: Settings) -> None:
        done = self.run(settings.model_copy(update={"database_url": "postgresql://127.0.0.1:1/x"}))
        assert done.returncode == 1
        assert "database-unavailable" in done.stderr
        assert "Traceback" not in done.stderr
