"""Daguerre on an object store: what hosts share, what a crash leaves, and what a store that fails does."""

from __future__ import annotations

import asyncio
import hashlib
import io
import shutil
import stat
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from service.accounts.policies import set_policy
from service.accounts.signing_keys import create_signing_key
from service.api.app import create_app
from service.api.resources import open_resources as open_api
from service.config.settings import Settings, SettingsError
from service.config.values import StoreUrl
from service.dependencies.outages import STORAGE
from service.errors import ServiceError
from service.ids import ImageId
from service.launcher.embedded.object_store import BUCKET, ObjectStoreServer
from service.queue import jobs
from service.renditions.signatures import sign
from service.storage.interface import StorageUnavailable
from service.storage.object_store.client import Attributes, ObjectStore
from service.storage.object_store.originals import object_name
from tests.conftest import Client, Tenant, resources_of, run_worker
from tests.support.forwarder import Forwarder
from tests.support.samples import jpeg
from tests.support.verify import verify
from tests.support.waiting import until
from worker.cron.eviction import evict_renditions
from worker.cron.sweep import sweep
from worker.resources import open_resources

JPEG = {"Content-Type": "image/jpeg"}
PREFIX = "prefix"


@pytest.fixture
async def forwarder(object_store_server: ObjectStoreServer) -> AsyncIterator[Forwarder]:
    """The way to the store."""
    port = urlsplit(object_store_server.environment()["AWS_ENDPOINT_URL_S3"]).port
    assert port is not None
    async with Forwarder.open(port) as forwarder:
        yield forwarder


@pytest.fixture
def settings(
    settings: Settings,
    object_store_server: ObjectStoreServer,
    forwarder: Forwarder,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Settings:
    for name, value in object_store_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{forwarder.port}")
    url = StoreUrl("s3", BUCKET, f"{PREFIX}-{tmp_path.name}".lower())
    return settings.model_copy(update={"storage": url, "renditions_dir": None, "cache": tmp_path / "cache"})


@pytest.fixture
def store(settings: Settings, object_store_server: ObjectStoreServer) -> ObjectStore:
    """The store, without the forwarder."""
    assert settings.object_store is not None
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("AWS_ENDPOINT_URL_S3")
        return ObjectStore(settings.object_store, object_store_server.environment())


async def list_names(store: ObjectStore) -> list[str]:
    groups = [group async for group in store.list_all("")]
    return sorted(one.name for group in groups for one in group if one.name != "storage-id")


async def upload(api: Client, tenant: Tenant, body: bytes = b"") -> Any:
    return await api.post("/v1/images", data=io.BytesIO(body or jpeg()), headers={**JPEG, **tenant.headers})


async def image_id_of(answer: Any) -> str:
    assert answer.status == 200, await answer.text()
    return str((await answer.json())["response"]["id"])


async def code(answer: Any) -> tuple[int, str]:
    return answer.status, (await answer.json())["error"]["code"]


async def run_sweep(settings: Settings, connection: Any) -> None:
    for table, column in (("unfinished_uploads", "started_at"), ("removals", "removed_at")):
        await connection.execute(f"update {table} set {column} = {column} - interval '2 hours'")
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings, redis) as resources:
        await sweep({"resources": resources})
    await redis.aclose(close_connection_pool=True)


@pytest.fixture
async def other_host(settings: Settings, tmp_path: Path) -> AsyncIterator[Client]:
    """An API on another host, with a cache of its own."""
    app = create_app(settings.model_copy(update={"cache": tmp_path / "other-cache"}))
    async with TestClient(TestServer(app)) as client:
        yield client


class TestFlow:
    @pytest.mark.usefixtures("worker")
    async def test_image_is_the_same_on_every_host(
        self, api: Client, other_host: Client, tenant: Tenant, store: ObjectStore, connection: Any, settings: Settings
    ) -> None:
        body = jpeg(640, 480)
        image_id = await image_id_of(await upload(api, tenant, body))
        assert await list_names(store) == [object_name(ImageId(image_id))]
        assert await connection.fetchval("select count(*) from unfinished_uploads") == 0
        for host in (api, other_host):
            answer = await host.get(f"/i/{image_id}")
            assert await answer.read() == body
            part = await host.get(f"/i/{image_id}", headers={"Range": "bytes=10-19"})
            assert (part.status, await part.read()) == (206, body[10:20])
        rendition = await api.get(f"/i/{image_id}?width=32&format=png")
        assert rendition.status == 200
        again = await other_host.get(f"/i/{image_id}?width=32&format=png")
        assert await again.read() == await rendition.read()
        assert again.headers["ETag"] == rendition.headers["ETag"]
        await until(lambda: connection.fetchval("select count(*) = 1 from renditions"))
        assert len(await list_names(store)) == 2
        assert (await verify(settings)).is_well
        assert (await api.delete(f"/v1/images/{image_id}", headers=tenant.headers)).status == 200
        assert await list_names(store) == []
        assert (await other_host.get(f"/i/{image_id}")).status == 404
        assert await connection.fetchval("select count(*) from removals") == 0

    @pytest.mark.parametrize("size", [1 << 20, 17 << 20])
    async def test_large_body_arrives_completely(
        self, api: Client, other_host: Client, tenant: Tenant, size: int
    ) -> None:
        body = jpeg() + bytes(size)
        async with run_worker(resources_of(api).settings):
            image_id = await image_id_of(await upload(api, tenant, body))
        for host in (api, other_host):
            answer = await host.get(f"/i/{image_id}")
            assert await answer.read() == body

    @pytest.mark.usefixtures("worker")
    async def test_worker_on_the_same_host_downloads_nothing(
        self, api: Client, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        downloads: list[str] = []
        download = ObjectStore.download

        async def record(self: ObjectStore, name: str, path: Path) -> Any:
            downloads.append(name)
            return await download(self, name, path)

        monkeypatch.setattr(ObjectStore, "download", record)
        image_id = await image_id_of(await upload(api, tenant))
        assert downloads == []
        assert (await api.get(f"/i/{image_id}?width=32&format=png")).status == 200
        assert [name for name in downloads if not name.startswith("renditions/")] == []

    async def test_worker_on_another_host_downloads_the_picture(
        self, api: Client, tenant: Tenant, settings: Settings, tmp_path: Path
    ) -> None:
        async with run_worker(settings, cache=tmp_path / "worker-cache"):
            image_id = await image_id_of(await upload(api, tenant))
        assert (tmp_path / "worker-cache" / "files" / object_name(ImageId(image_id))).exists()

    @pytest.mark.usefixtures("worker")
    async def test_lost_copies_are_fetched_again(self, api: Client, tenant: Tenant, settings: Settings) -> None:
        body = jpeg(640, 480)
        image_id = await image_id_of(await upload(api, tenant, body))
        shutil.rmtree(settings.cache_folder / "files")
        resources_of(api).delivery.memory_cache.invalidate_all()
        assert await (await api.get(f"/i/{image_id}")).read() == body
        shutil.rmtree(settings.cache_folder / "files")
        assert (await api.get(f"/i/{image_id}?width=32&format=png")).status == 200

    @pytest.mark.usefixtures("worker")
    async def test_damaged_copies_are_fetched_again(self, api: Client, tenant: Tenant, settings: Settings) -> None:
        body = jpeg(640, 480)
        image_id = await image_id_of(await upload(api, tenant, body))
        path = settings.cache_folder / "files" / object_name(ImageId(image_id))
        for damaged in (b"", body[:1000]):
            path.write_bytes(damaged)
            assert (await api.get(f"/i/{image_id}?width={len(damaged) + 10}&format=png")).status == 200
            path.write_bytes(damaged)
            resources_of(api).delivery.memory_cache.invalidate_all()
            assert await (await api.get(f"/i/{image_id}")).read() == body

    async def test_picture_is_not_refused_for_a_damaged_copy(
        self, api: Client, tenant: Tenant, settings: Settings, connection: Any
    ) -> None:
        sending = asyncio.create_task(upload(api, tenant))
        await until(lambda: connection.fetchval("select count(*) = 1 from images"))
        image_id = await connection.fetchval("select id from images")
        (settings.cache_folder / "files" / object_name(image_id)).write_bytes(b"damaged")
        async with run_worker(settings):
            assert await image_id_of(await sending) == image_id

    @pytest.mark.usefixtures("worker")
    async def test_lost_cache_is_created_again(self, api: Client, tenant: Tenant, settings: Settings) -> None:
        body = jpeg() + bytes(1 << 20)
        image_id = await image_id_of(await upload(api, tenant, body))
        resources_of(api).delivery.memory_cache.invalidate_all()
        for path in (f"/i/{image_id}", f"/i/{image_id}?width=32&format=png"):
            shutil.rmtree(settings.cache_folder)
            assert (await api.get(path)).status == 200
        shutil.rmtree(settings.cache_folder)
        assert (await upload(api, tenant, body)).status == 200
        assert stat.S_IMODE((settings.cache_folder / "files").stat().st_mode) == 0o700

    @pytest.mark.usefixtures("worker")
    async def test_eviction_goes_by_rows(
        self, api: Client, tenant: Tenant, settings: Settings, store: ObjectStore, connection: Any
    ) -> None:
        image_id = await image_id_of(await upload(api, tenant))
        for width in range(10, 15):
            assert (await api.get(f"/i/{image_id}?width={width}&format=png")).status == 200
        await until(lambda: connection.fetchval("select count(*) = 5 from renditions"))
        total = await connection.fetchval("select sum(size)::bigint from renditions")
        redis = jobs.open_redis(settings.redis_url)
        async with open_resources(settings.model_copy(update={"renditions_size": total // 2}), redis) as resources:
            await evict_renditions({"resources": resources})
        await redis.aclose(close_connection_pool=True)
        left = [name for name in await list_names(store) if name.startswith("renditions/")]
        assert len(left) == await connection.fetchval("select count(*) from renditions")
        assert 0 < len(left) < 4


class TestRedirect:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"delivery_redirect": True})

    @pytest.mark.usefixtures("worker")
    async def test_large_original_comes_from_the_store(self, api: Client, tenant: Tenant) -> None:
        body = jpeg(900, 900, quality=98)
        image_id = await image_id_of(await upload(api, tenant, body))
        redirect = await api.get(f"/i/{image_id}", allow_redirects=False)
        assert redirect.status == 302
        assert redirect.headers["Cache-Control"] == "public, max-age=300"
        answer = await api.get(f"/i/{image_id}")
        assert await answer.read() == body
        assert answer.headers["Content-Type"] == "image/jpeg"
        part = await api.get(f"/i/{image_id}", headers={"Range": "bytes=5-9"})
        assert (part.status, await part.read()) == (206, body[5:10])
        head = await api.head(f"/i/{image_id}", allow_redirects=False)
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(body)))

    @pytest.mark.usefixtures("worker")
    async def test_small_pictures_and_renditions_are_sent(self, api: Client, tenant: Tenant) -> None:
        small = await image_id_of(await upload(api, tenant))
        large = await image_id_of(await upload(api, tenant, jpeg(900, 900, quality=98)))
        for path in (f"/i/{small}", f"/i/{large}?width=300&format=png"):
            assert (await api.get(path, allow_redirects=False)).status == 200

    @pytest.mark.usefixtures("worker")
    async def test_redirect_is_valid_no_longer_than_the_signed_url(
        self, api: Client, tenant: Tenant, connection: Any
    ) -> None:
        image_id = await image_id_of(await upload(api, tenant, jpeg(900, 900, quality=98)))
        secret = await create_signing_key(connection, tenant.name)
        for seconds in (20, 10_000):
            path = sign(f"/i/{image_id}", secret, expires=int(time.time()) + seconds)
            redirect = await api.get(path, allow_redirects=False)
            valid_s = int(parse_qs(urlsplit(redirect.headers["Location"]).query)["X-Amz-Expires"][0])
            assert min(seconds, 600) - 5 <= valid_s <= min(seconds, 600)

    @pytest.mark.usefixtures("worker")
    async def test_locations_are_never_in_the_store_for_clients(
        self, api: Client, tenant: Tenant, connection: Any
    ) -> None:
        await set_policy(connection, tenant.name, require_signature=None, strip_location=True)
        image_id = await image_id_of(await upload(api, tenant, jpeg(900, 900, quality=98)))
        assert (await api.get(f"/i/{image_id}", allow_redirects=False)).status == 200


class TestCrash:
    """What a process leaves that ends between two steps of an upload."""

    async def receive(self, api: Client, image_id: ImageId) -> Any:
        async with resources_of(api).storage.receive(image_id) as file:
            await file.finish([b"content"])
        return file

    async def test_object_without_an_image_is_removed(
        self, api: Client, settings: Settings, store: ObjectStore, connection: Any, tenant: Tenant
    ) -> None:
        async with run_worker(settings):
            kept = await image_id_of(await upload(api, tenant))
        file = await self.receive(api, ImageId("AAAAAAA"))
        assert await resources_of(api).storage.sync_batch([file]) == [None]
        assert len(await list_names(store)) == 2
        await run_sweep(settings, connection)
        assert await list_names(store) == [object_name(ImageId(kept))]
        assert await connection.fetchval("select count(*) from unfinished_uploads") == 0

    async def test_object_of_a_committed_row_is_kept(
        self, api: Client, settings: Settings, store: ObjectStore, connection: Any, tenant: Tenant
    ) -> None:
        async with run_worker(settings):
            image_id = await image_id_of(await upload(api, tenant))
        await connection.execute("insert into unfinished_uploads (image_id, token) values ($1, 'x')", image_id)
        await run_sweep(settings, connection)
        assert await list_names(store) == [object_name(ImageId(image_id))]
        assert await connection.fetchval("select count(*) from unfinished_uploads") == 0

    async def test_object_that_had_the_name_before_is_kept(
        self, api: Client, settings: Settings, store: ObjectStore, connection: Any, tenant: Tenant
    ) -> None:
        """E.g. because the database was restored from an older backup."""
        async with run_worker(settings):
            await image_id_of(await upload(api, tenant))
        name = object_name(ImageId("AAAAAAA"))
        await store.put(name, b"older", Attributes(note="another"))
        file = await self.receive(api, ImageId("AAAAAAA"))
        [error] = await resources_of(api).storage.sync_batch([file])
        assert error is not None
        await connection.execute("insert into unfinished_uploads (image_id, token) values ('AAAAAAA', 'x')")
        await run_sweep(settings, connection)
        assert (await store.digest(name))[0] == 5

    async def test_unfinished_upload_is_reported(
        self, api: Client, settings: Settings, connection: Any, tenant: Tenant, store: ObjectStore
    ) -> None:
        async with run_worker(settings):
            kept = await image_id_of(await upload(api, tenant))
        file = await self.receive(api, ImageId("AAAAAAA"))
        await resources_of(api).storage.sync_batch([file])
        await store.put("ab/BBBBBBB", b"foreign", Attributes())
        await connection.execute("update unfinished_uploads set started_at = started_at - interval '2 hours'")
        found = await verify(settings)
        assert len(found.problems) == 2, found.problems
        assert (await verify(settings, repair=True, force=True)).is_well
        assert (await verify(settings)).problems == []
        assert object_name(ImageId(kept)) in await list_names(store)
        assert "unclaimed/BBBBBBB/0" in await list_names(store)
        assert object_name(file.image_id) not in await list_names(store)

    async def test_upload_in_flight_is_no_file_without_an_image(
        self, api: Client, settings: Settings, tenant: Tenant, store: ObjectStore
    ) -> None:
        async with run_worker(settings):
            await image_id_of(await upload(api, tenant))
        file = await self.receive(api, ImageId("AAAAAAA"))
        await resources_of(api).storage.sync_batch([file])
        assert (await verify(settings, repair=True, force=True)).problems == []
        assert object_name(file.image_id) in await list_names(store)

    async def test_rendition_of_a_deleted_image_is_removed(
        self, api: Client, settings: Settings, tenant: Tenant, store: ObjectStore, connection: Any
    ) -> None:
        """Its worker was killed before it wrote the row, or the store was slow to accept it."""
        async with run_worker(settings):
            image_id = await image_id_of(await upload(api, tenant))
            assert (await api.get(f"/i/{image_id}?width=32&format=png")).status == 200
            await until(lambda: connection.fetchval("select count(*) = 1 from renditions"))
        before = await list_names(store)
        for digest in ("0" * 32, "1" * 32):
            await store.put(f"renditions/{object_name(ImageId('AAAAAAA'))}/{digest}", b"late", Attributes())
        assert (await verify(settings)).problems == ["renditions of image AAAAAAA: the image was deleted"]
        assert (await verify(settings, repair=True)).is_well
        assert await list_names(store) == before
        assert (await verify(settings)).problems == []

    async def test_upload_that_took_too_long_is_not_inserted(self, api: Client) -> None:
        """The sweep of a worker may be about to remove its object."""
        storage = resources_of(api).storage
        file = await self.receive(api, ImageId("AAAAAAA"))
        assert await storage.sync_batch([file]) == [None]
        file.began_at -= 3600
        [error] = await storage.sync_batch([file])
        assert isinstance(error, ServiceError)
        assert error.code == "storage-unavailable"


class TestManyObjects:
    NUM_OBJECTS, NUM_IMAGES = 10_000, 300
    CONTENT = b"content"

    @pytest.mark.slow
    @pytest.mark.timeout(240)
    @pytest.mark.usefixtures("api")
    async def test_verify_lists_all_of_them(
        self, settings: Settings, tenant: Tenant, store: ObjectStore, connection: Any
    ) -> None:
        image_ids = [ImageId(f"{number:07}") for number in range(self.NUM_IMAGES)]
        # A fifth is in one shard, which is more than a page of the list has.
        foreign = [
            f"{number % 256 if number % 5 else 0:02x}/{number:07}-foreign"
            for number in range(self.NUM_IMAGES, self.NUM_OBJECTS)
        ]
        await connection.execute(
            "insert into images (id, account_id, size, sha256, state)"
            " select id, $2, $3, $4, 'ready' from unnest($1::text[]) as id",
            *(image_ids, tenant.id, len(self.CONTENT), hashlib.sha256(self.CONTENT).digest()),
        )
        await connection.execute(
            "update accounts set num_images = $2, used_bytes = $3 where id = $1",
            *(tenant.id, self.NUM_IMAGES, self.NUM_IMAGES * len(self.CONTENT)),
        )
        *present, missing = image_ids
        await asyncio.to_thread(self.put_all, store, [*map(object_name, present), *foreign])
        image_problem, *file_problems = (await verify(settings, read=False)).problems
        assert image_problem == f"image {missing}: its file is missing"
        assert len(file_problems) == len(foreign)
        assert all("-foreign: no image belongs to it" in problem for problem in file_problems)

    def put_all(self, store: ObjectStore, names: list[str]) -> None:
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(partial(store.create_now, data=self.CONTENT), names))


class TestFailingStore:
    @pytest.fixture(autouse=True)
    def end_outage(self) -> Any:
        yield
        STORAGE._started_at = None  # it is one for the process

    @pytest.mark.usefixtures("worker")
    @pytest.mark.parametrize("mode", ["refuse", "hang"])
    async def test_store_that_is_away_is_a_quick_503(
        self, api: Client, tenant: Tenant, forwarder: Forwarder, mode: Any, connection: Any, settings: Settings
    ) -> None:
        image_id = await image_id_of(await upload(api, tenant))
        forwarder.mode = mode
        forwarder.drop_connections()
        started = time.monotonic()
        answers = await asyncio.gather(*(upload(api, tenant, jpeg(64, number)) for number in range(40, 70)))
        assert {await code(answer) for answer in answers} == {(503, "storage-unavailable")}
        assert all(answer.headers["Retry-After"] for answer in answers)
        assert time.monotonic() - started < 12
        assert (await api.get(f"/v1/images/{image_id}", headers=tenant.headers)).status == 200
        assert (await api.get("/readyz")).status == 503
        forwarder.mode = "forward"
        forwarder.drop_connections()

        async def works() -> bool:
            answer = await upload(api, tenant)
            return bool(answer.status == 200)

        await until(works)
        await run_sweep(settings, connection)
        assert (await verify(settings)).problems == []

    @pytest.mark.usefixtures("worker")
    async def test_lost_response_is_no_second_image(
        self, api: Client, tenant: Tenant, forwarder: Forwarder, store: ObjectStore
    ) -> None:
        """The store has the object; the client repeats its request, which finds it."""
        await image_id_of(await upload(api, tenant))
        forwarder.mode = "lose responses"
        sending = asyncio.create_task(upload(api, tenant, jpeg(65, 48)))

        async def is_written() -> bool:
            return len(await list_names(store)) == 2

        await until(is_written)
        forwarder.mode = "forward"
        assert (await sending).status == 200
        assert len(await list_names(store)) == 2

    @pytest.mark.usefixtures("worker")
    async def test_store_that_finds_nothing_loses_no_image(
        self, api: Client, tenant: Tenant, forwarder: Forwarder, connection: Any
    ) -> None:
        """E.g. a proxy whose upstream is away."""
        image_id = ImageId(await image_id_of(await upload(api, tenant)))
        storage = resources_of(api).storage
        await storage.require_available()  # its id is not read again for some seconds
        forwarder.answer_all("404 Not Found")
        with pytest.raises(StorageUnavailable):
            await storage.find_missing([image_id])
        assert await code(await upload(api, tenant)) == (503, "storage-unavailable")
        forwarder.restore()
        assert await storage.find_missing([image_id, ImageId("AAAAAAA")]) == {"AAAAAAA"}
        assert await connection.fetchval("select count(*) from images where state = 'failed'") == 0

    @pytest.mark.usefixtures("worker")
    @pytest.mark.parametrize(
        "status", ["403 Forbidden", "404 Not Found", "429 Too Many Requests", "500 Oops", "301 Moved"]
    )
    async def test_any_refusal_is_a_503(
        self, api: Client, tenant: Tenant, forwarder: Forwarder, connection: Any, settings: Settings, status: str
    ) -> None:
        image_id = await image_id_of(await upload(api, tenant))
        shutil.rmtree(settings.cache_folder / "files")
        resources_of(api).delivery.memory_cache.invalidate_all()
        forwarder.answer_all(status)
        for body in (jpeg(), jpeg() + bytes(1 << 20), jpeg() + bytes(17 << 20)):
            assert await code(await upload(api, tenant, body)) == (503, "storage-unavailable")
        assert await code(await api.get(f"/i/{image_id}")) == (503, "storage-unavailable")
        ready = await api.get("/readyz")
        assert ready.status == 503
        assert "secret" not in (await ready.text()).lower()
        assert (await api.delete(f"/v1/images/{image_id}", headers=tenant.headers)).status == 200
        forwarder.restore()

        async def works() -> bool:
            return bool((await upload(api, tenant)).status == 200)

        await until(works)
        await run_sweep(settings, connection)
        assert (await verify(settings)).problems == []

    @pytest.mark.usefixtures("worker")
    async def test_large_upload_to_a_slow_store_delays_no_small_one(
        self, api: Client, tenant: Tenant, forwarder: Forwarder, connection: Any
    ) -> None:
        forwarder.delay_s = 0.1
        large = asyncio.create_task(upload(api, tenant, jpeg() + bytes(4 << 20)))
        await until(lambda: connection.fetchval("select count(*) = 1 from unfinished_uploads"))
        assert (await upload(api, tenant)).status == 200
        assert not large.done()
        forwarder.delay_s = 0
        assert (await large).status == 200

    @pytest.mark.usefixtures("worker")
    async def test_slow_store_only_takes_longer(self, api: Client, tenant: Tenant, forwarder: Forwarder) -> None:
        forwarder.delay_s = 0.2
        image_id = await image_id_of(await upload(api, tenant))
        assert (await api.get(f"/i/{image_id}?width=32&format=png")).status == 200


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[None]:
    async with open_api(settings):
        yield


class TestStart:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "the object store refuses the credentials"),
            ({"AWS_ACCESS_KEY_ID": "nobody"}, "the object store refuses the credentials"),
            ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}, "the object store does not respond"),
        ],
    )
    async def test_unusable_store_is_a_sentence(
        self, settings: Settings, changes: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in changes.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SettingsError, match=f"DAGUERRE_STORAGE: s3://.* cannot be used: {reason}"):
            async with started(settings):
                pass

    async def test_bucket_of_others_is_a_sentence(self, settings: Settings) -> None:
        changed = settings.model_copy(update={"storage": StoreUrl("s3", "not-ours")})
        with pytest.raises(SettingsError, match="s3://not-ours cannot be used: the object store refuses"):
            async with started(changed):
                pass

    async def test_missing_bucket_is_a_sentence(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        async def refuse(_: web.Request) -> web.Response:
            error = "<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>"
            return web.Response(status=404, text=error, content_type="application/xml")

        app = web.Application()
        app.router.add_route("*", "/{name:.*}", refuse)
        async with TestServer(app) as amazon:
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", str(amazon.make_url("")))
            with pytest.raises(SettingsError, match="cannot be used: the bucket does not exist"):
                async with started(settings):
                    pass

    async def test_store_of_another_database_is_refused(
        self, settings: Settings, connection: Any, tenant: Tenant, api: Client
    ) -> None:
        async with run_worker(settings):
            await image_id_of(await upload(api, tenant))
        await connection.execute("update storage set id = 'another'")
        with pytest.raises(SettingsError, match=r"it has the id .*, and the storage of this database"):
            async with started(settings):
                pass
