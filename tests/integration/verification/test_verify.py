"""`daguerre verify`: what is not whole is told, and mended where it can be; what is whole is left alone."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from service.config.settings import Settings, SettingsError
from service.config.sizes import readable
from service.ids import ImageId
from service.queue import jobs
from service.queue.jobs import PROBE_QUEUE
from service.storage.local.originals import LocalOriginals
from tests.conftest import Client, Tenant
from tests.integration.cli.test_cli import daguerre
from tests.support.disks import prepare_known
from tests.support.samples import jpeg, stored_files
from tests.support.verify import ID, PICTURE, insert, put, verify


@pytest.fixture(autouse=True)
async def storage(settings: Settings, connection: Any) -> LocalOriginals:
    return await prepare_known(settings, connection)


async def test_what_clients_stored_is_whole(settings: Settings, api: Client, tenant: Tenant, worker: None) -> None:
    stored = {}
    for width in (40, 50):
        body = jpeg(width)
        answer = await api.post("/v1/images", data=body, headers=tenant.headers | {"Content-Type": "image/jpeg"})
        stored[ImageId((await answer.json())["response"]["id"])] = hashlib.sha256(body).digest()
    told = await verify(settings, expected=stored)
    assert told.is_well, told.problems
    assert told.problems == []
    assert told.summary.startswith("2 images, ")
    assert told.summary.endswith(": all is well.")


@pytest.mark.parametrize("place", ["kept", "incoming"])
async def test_a_file_may_be_in_either_place(
    settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant, place: str
) -> None:
    await insert(connection, tenant)
    put(storage.path(ID) if place == "kept" else storage.incoming_path(ID))
    assert (await verify(settings)).is_well


class TestContent:
    async def test_a_missing_file_is_told_and_its_image_deleted_only_if_that_is_asked_for(
        self, settings: Settings, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        told = await verify(settings, repair=True)
        assert not told.is_well
        assert told.problems == [f"image {ID}: its file is missing"]
        assert told.summary.startswith("1 image, ")
        assert told.summary.endswith(": 1 problem, 0 of them mended.")
        told = await verify(settings, drop_missing=True)
        assert told.is_well
        assert told.problems == [f"image {ID}: its file is missing; deleted"]
        assert (await verify(settings)).problems == []
        assert tuple(await connection.fetchrow("select num_images, used_bytes from accounts")) == (0, 0)

    async def test_images_are_not_deleted_where_most_files_are_missing(
        self, settings: Settings, connection: Any, tenant: Tenant
    ) -> None:
        for number in range(11):
            await insert(connection, tenant, image_id=f"Image{number:02}")
        told = await verify(settings, repair=True, drop_missing=True)
        assert told.problems[-1].startswith("storage: 11 of 11 files are missing, so none was dropped")
        assert await connection.fetchval("select count(*) from images") == 11

    async def test_a_file_that_was_cut_is_told(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        put(storage.path(ID), PICTURE[:-1])
        told = await verify(settings, read=False)
        assert told.problems == [f"image {ID}: its file has {len(PICTURE) - 1} bytes instead of {len(PICTURE)}"]

    async def test_a_flipped_bit_is_told_where_files_are_read(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        put(storage.path(ID), PICTURE[:-1] + bytes([PICTURE[-1] ^ 1]))
        told = await verify(settings)
        assert told.problems == [f"image {ID}: its file is not what was sent: the SHA-256 differs"]
        assert (await verify(settings, read=False)).is_well

    async def test_more_images_than_one_page_are_looked_at(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        for number in range(5):
            await insert(connection, tenant, image_id=f"Image0{number}")
            if number != 3:
                put(storage.path(ImageId(f"Image0{number}")))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("service.verification.image_checks.BATCH_SIZE", 2)
            told = await verify(settings)
        assert told.problems == ["image Image03: its file is missing"]
        assert told.summary.startswith("5 images, ")

    async def test_an_image_that_was_refused_needs_no_file(
        self, settings: Settings, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant, state="failed")
        assert (await verify(settings, repair=True)).problems == [
            f"account {tenant.name}: its counters are off by 1 images and {len(PICTURE)} bytes; counted anew"
        ]

    async def test_a_storage_that_is_not_there_is_an_error_and_not_a_thousand_lost_images(
        self, settings: Settings, connection: Any, tenant: Tenant, tmp_path: Path
    ) -> None:
        await insert(connection, tenant)
        with pytest.raises(SettingsError, match="DAGUERRE_STORAGE"):
            await verify(settings.model_copy(update={"storage": tmp_path / "elsewhere"}))


class TestFiles:
    async def test_a_file_without_an_image_is_set_aside(self, settings: Settings, storage: LocalOriginals) -> None:
        path = put(storage.path(ID))
        assert (await verify(settings)).problems == [f"file {path}: no image belongs to it"]
        assert path.exists()
        told = await verify(settings, repair=True)
        assert told.is_well
        aside = settings.storage_folder / "unclaimed" / ID
        assert told.problems == [f"file {path}: no image belongs to it; moved to {aside}"]
        assert aside.read_bytes() == PICTURE
        assert (await verify(settings)).problems == []

    async def test_a_file_that_is_to_be_removed_is_no_problem_at_first(
        self, settings: Settings, storage: LocalOriginals, connection: Any
    ) -> None:
        put(storage.path(ID))
        await connection.execute("insert into removals (image_id) values ($1)", ID)
        assert (await verify(settings)).is_well

    async def test_a_removal_that_nobody_finished_is_finished(
        self, settings: Settings, storage: LocalOriginals, connection: Any
    ) -> None:
        path = put(storage.path(ID))
        await connection.execute("insert into removals values ($1, now() - interval '3 minutes')", ID)
        assert (await verify(settings)).problems == [f"image {ID}: it is gone and its file still to be removed"]
        assert (await verify(settings, repair=True)).is_well
        assert not path.exists()
        assert (await verify(settings)).problems == []

    async def test_what_cannot_be_removed_is_not_told_as_mended(
        self, settings: Settings, storage: LocalOriginals, connection: Any
    ) -> None:
        storage.path(ID).mkdir()  # no file, so it cannot be unlinked
        await connection.execute("insert into removals values ($1, now() - interval '3 minutes')", ID)
        told = await verify(settings, repair=True)
        storage.path(ID).rmdir()
        assert not told.is_well
        assert told.problems == [f"image {ID}: it is gone and its file still to be removed"]

    async def test_a_body_on_its_way_is_no_problem(self, settings: Settings, storage: LocalOriginals) -> None:
        put(storage.incoming_path(ID), age_s=3600)
        assert (await verify(settings)).is_well

    async def test_a_body_that_was_left_behind_is_removed(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant, image_id="BBBBBBB")
        put(storage.path(ImageId("BBBBBBB")))
        path = put(storage.incoming_path(ID), age_s=4300)
        assert (await verify(settings)).problems == [f"file incoming/{ID}: it was never accepted"]
        assert path.exists()
        assert (await verify(settings, repair=True)).is_well
        assert not path.exists()

    async def test_an_image_that_was_left_in_incoming_is_moved(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        put(storage.incoming_path(ID), age_s=4300)
        assert (await verify(settings)).problems == [f"file incoming/{ID}: it was not moved to its place"]
        assert (await verify(settings, repair=True)).is_well
        assert storage.path(ID).exists()
        assert (await verify(settings)).problems == []

    async def test_repair_never_replaces_a_picture(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        """A file came under an id that was taken, and its process ended before it got another."""
        await insert(connection, tenant)
        stored = put(storage.path(ID))
        put(storage.incoming_path(ID), b"another upload", age_s=5000)
        problem = f"file incoming/{ID}: it came under an id that was taken"
        assert (await verify(settings)).problems == [problem]
        assert (await verify(settings, repair=True)).problems == [f"{problem}; removed"]
        assert [(path, path.read_bytes()) for path in stored_files(settings)] == [(stored, PICTURE)]
        assert (await verify(settings)).problems == []

    async def test_an_orphan_in_the_place_is_set_aside(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        """The process ended between the commit and the move, and the row decides which file is the image."""
        await insert(connection, tenant)
        put(storage.path(ID), b"of no image")
        put(storage.incoming_path(ID), age_s=5000)
        problem = f"file incoming/{ID}: another file is in its place"
        assert problem in (await verify(settings)).problems
        told = await verify(settings, repair=True)
        assert f"{problem}; moved, and the other one to `unclaimed`" in told.problems
        assert storage.path(ID).read_bytes() == PICTURE
        assert (settings.storage_folder / "unclaimed" / ID).read_bytes() == b"of no image"
        assert (await verify(settings)).problems == []

    async def test_a_folder_in_the_place_loses_no_picture(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        storage.path(ID).mkdir()
        received = put(storage.incoming_path(ID), age_s=5000)
        told = await verify(settings, repair=True)
        storage.path(ID).rmdir()
        assert f"file incoming/{ID}: it came under an id that was taken" in told.problems
        assert received.read_bytes() == PICTURE

    async def test_one_file_under_both_names_is_mended(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        os.link(put(storage.incoming_path(ID), age_s=5000), storage.path(ID))
        problem = f"file incoming/{ID}: it was not moved to its place"
        assert (await verify(settings, repair=True)).problems == [f"{problem}; moved"]
        assert stored_files(settings) == [storage.path(ID)]

    async def test_one_stuck_file_stops_no_repair(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant, image_id="BBBBBBB")
        put(storage.path(ImageId("BBBBBBB")))
        for name in ("STUCK01", "ZZZZZZ1"):
            storage.incoming_path(ImageId(name)).mkdir()  # no file, so it cannot be unlinked
            os.utime(storage.incoming_path(ImageId(name)), (0, 0))
        put(storage.incoming_path(ID), age_s=5000)
        told = await verify(settings, repair=True)
        for name in ("STUCK01", "ZZZZZZ1"):
            storage.incoming_path(ImageId(name)).rmdir()
        assert sorted(told.problems) == [
            f"file incoming/{ID}: it was never accepted; removed",
            "file incoming/STUCK01: it was never accepted",
            "file incoming/ZZZZZZ1: it was never accepted",
        ]


async def test_an_image_that_nobody_looked_at_is_enqueued(
    settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
) -> None:
    await insert(connection, tenant, state="pending", age_s=61)
    await insert(connection, tenant, state="pending", age_s=50, image_id="JustNow")
    put(storage.path(ID))
    put(storage.path(ImageId("JustNow")))
    told = await verify(settings)
    assert [problem.partition(" since")[0] for problem in told.problems] == [f"image {ID}: no worker has looked at it"]
    assert (await verify(settings, repair=True)).is_well
    redis = jobs.open_redis(settings.redis_url)
    assert await redis.zrange(PROBE_QUEUE, 0, -1) == [ID.encode()]
    await redis.aclose(close_connection_pool=True)


class TestAccounts:
    async def test_counters_that_are_off_are_told_and_counted_anew(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        put(storage.path(ID))
        await connection.execute("update accounts set used_bytes = used_bytes + 5, num_images = 3")
        problem = f"account {tenant.name}: its counters are off by 2 images and 5 bytes"
        assert (await verify(settings)).problems == [problem]
        assert (await verify(settings, repair=True)).problems == [f"{problem}; counted anew"]
        assert (await verify(settings)).problems == []

    async def test_an_account_over_its_quota_is_told(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        put(storage.path(ID))
        await connection.execute("update accounts set max_bytes = $1", len(PICTURE) - 1)
        told = await verify(settings, repair=True)
        assert not told.is_well
        size = readable(len(PICTURE))
        assert told.problems == [f"account {tenant.name}: it stores {size} of {size}"]


async def test_images_that_are_expected_must_be_there(
    settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
) -> None:
    await insert(connection, tenant)
    put(storage.path(ID))
    right = hashlib.sha256(PICTURE).digest()
    assert (await verify(settings, expected={ID: right})).is_well
    told = await verify(settings, expected={ID: bytes(32), ImageId("Missing"): right})
    assert told.problems == [
        f"image {ID}: another SHA-256 was expected",
        "image Missing: it was expected and is not stored",
    ]


async def test_work_under_way_is_no_problem(settings: Settings, api: Client, tenant: Tenant, worker: None) -> None:
    async def upload_and_delete() -> None:
        headers = tenant.headers | {"Content-Type": "image/jpeg"}
        for _ in range(15):
            answer = await (await api.post("/v1/images", data=PICTURE, headers=headers)).json()
            path = f"/v1/images/{answer['response']['id']}"
            assert (await api.delete(path, headers=tenant.headers)).status == 200

    working = asyncio.gather(*(upload_and_delete() for _ in range(4)))
    told = []
    while not working.done():
        told.append(await verify(settings))
    await working
    assert len(told) > 1
    assert [problem for one in told for problem in one.problems] == []
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

    async def test_it_prints_what_is_wrong_and_ends_with_1_until_it_is_mended(
        self, settings: Settings, storage: LocalOriginals
    ) -> None:
        path = put(storage.path(ID))
        done = self.run(settings)
        assert (done.returncode, done.stderr) == (1, "")
        assert done.stdout.splitlines() == [
            f"file {path}: no image belongs to it",
            "0 images, 0 bytes: 1 problem, 0 of them mended.",
        ]
        assert self.run(settings, "--repair").returncode == 0
        done = self.run(settings, "--quick")
        assert (done.returncode, done.stdout) == (0, "0 images, 0 bytes, sizes only: all is well.\n")

    async def test_expected_images_come_from_a_file(self, settings: Settings, tmp_path: Path) -> None:
        lines = tmp_path / "expected"
        lines.write_text(f"{ID} {'0' * 64}\n")
        done = self.run(settings, "--expect", str(lines))
        assert done.returncode == 1
        assert f"image {ID}: it was expected and is not stored" in done.stdout
        lines.write_text("AAAAAAA\n")
        done = self.run(settings, "--expect", str(lines))
        assert done.returncode == 2
        assert "line 1 is not `ID SHA256`" in done.stderr

    async def test_a_database_that_is_away_is_one_sentence(self, settings: Settings) -> None:
        done = self.run(settings.model_copy(update={"database_url": "postgresql://127.0.0.1:1/x"}))
        assert done.returncode == 1
        assert "database-unavailable" in done.stderr
        assert "Traceback" not in done.stderr
