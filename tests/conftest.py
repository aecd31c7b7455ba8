"""Fixtures: a real PostgreSQL and Valkey per test process, and a separate database for every test."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import asyncpg
import hypothesis
import pytest
import redis as sync_redis
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from service.accounts.accounts import create_account, create_key
from service.api.app import create_app
from service.api.resources import RESOURCES, Resources
from service.config.settings import Settings
from service.config.values import StoreUrl
from service.http.server import Runner
from service.ids import AccountId
from service.launcher.embedded.object_store import BUCKET, ObjectStoreServer
from service.launcher.embedded.postgres import Postgres
from service.launcher.embedded.valkey import Valkey
from service.queue import jobs
from service.queue.connection import Redis
from service.schema.changes import create_schema
from service.storage.object_store.client import ObjectStore
from tests.chaos.report import print_faults
from tests.support.daguerre_processes import Daguerre, processes_of
from tests.support.folders import temporary_folder
from tests.support.resetting import reset_database, reset_storage
from tests.support.samples import jpeg
from worker.main import make_probe_worker, make_render_worker
from worker.resources import open_resources
from worker.sandbox.decoder import DEFAULT_LIMITS, DecoderLimits

# Assertions in these helpers show their values.
pytest.register_assert_rewrite("tests.support.idempotency", "tests.support.locations", "tests.support.renditions")

# Container images of Python often turn off bytecode files. Tests run hundreds of processes that import the same
# modules, and pytest caches its rewritten tests in these files, so they are turned on.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

_numbers = itertools.count()


DEFAULT_FUZZ_SEED = 1
_CHAOS = Path(__file__).with_name("chaos")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all",
        action="store_true",
        help="Run the slow tests too. Without it they run only where files or -k or -m select tests.",
    )
    parser.addoption(
        "--chaos",
        action="store_true",
        help="Run only the faults under load and the benchmark.",
    )
    parser.addoption(
        "--chaos-storage",
        choices=["disk", "s3"],
        default="disk",
        help="With --chaos: where the images are, on the disk or in an object store.",
    )
    parser.addoption(
        "--fuzz-inputs",
        type=int,
        default=1_000,
        metavar="N",
        help="Number of pictures to mutate, of all formats together.",
    )
    parser.addoption("--fuzz-seed", type=int, default=DEFAULT_FUZZ_SEED, metavar="SEED", help="Seed of the mutations.")


def pytest_configure(config: pytest.Config) -> None:
    """Configures Hypothesis: a tenth as many requests as mutated pictures, at most 1,000, the same in every run."""
    inputs, seed = config.getoption("--fuzz-inputs"), config.getoption("--fuzz-seed")
    hypothesis.settings.register_profile(
        "requests",
        max_examples=min(max(1, inputs // 10), 1_000),
        derandomize=seed == DEFAULT_FUZZ_SEED,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("requests")


def pytest_report_header(config: pytest.Config) -> str:
    return f"fuzzing: {config.getoption('--fuzz-inputs')} pictures, --fuzz-seed {config.getoption('--fuzz-seed')}"


@dataclass(frozen=True)
class Fuzzing:
    """The options of fuzz tests. `save` writes a picture that failed to `folder`."""

    inputs: int
    seed: int
    folder: Path

    def save(self, form: str, number: int, data: bytes) -> None:
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{self.seed}-{number}.{form}"
        path.write_bytes(data)
        print(f"saved as {path}")  # noqa: T201 - pytest shows it with the failure

    def report(self, form: str, line: str) -> None:
        print(f"{form}: {line}")  # noqa: T201


@pytest.fixture(scope="session")
def fuzzing(pytestconfig: pytest.Config) -> Fuzzing:
    return Fuzzing(
        pytestconfig.getoption("--fuzz-inputs"),
        pytestconfig.getoption("--fuzz-seed"),
        pytestconfig.rootpath / ".fuzz",
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    print_faults(terminalreporter)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Returns True for tests that the option --chaos excludes. None leaves the decision to other rules."""
    if not collection_path.is_file():
        return None
    return True if (_CHAOS in collection_path.parents) != config.getoption("--chaos") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    names_files = config.args_source is pytest.Config.ArgsSource.ARGS
    if names_files or any(map(config.getoption, ("--all", "--chaos", "-k", "-m"))):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test with `@pytest.mark.needs("exiftool")` if the command is missing. CI installs and requires it."""
    for marker in item.iter_markers("needs"):
        [command] = marker.args
        if shutil.which(command) is None:
            skip_or_fail(f"{command} is not installed")


def skip_or_fail(reason: str) -> NoReturn:
    """Skips the test because a tool is missing. Fails it in CI, where all tools are required."""
    if os.environ.get("DAGUERRE_TEST_REQUIRE"):
        pytest.fail(f"{reason}, but it is required")
    pytest.skip(reason)


@dataclass(frozen=True)
class Servers:
    postgres: Postgres
    valkey: Valkey
    folder: Path
    free_databases: list[str] = field(default_factory=list)  # reset after earlier tests
    free_storages: list[Path] = field(default_factory=list)  # reused, because creating 256 folders takes a while


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with (
        temporary_folder() as folder,
        Postgres(folder / "pg", settings={"fsync": "off", "io_method": "sync"}) as postgres,
        Valkey(folder / "valkey") as valkey,
    ):
        asyncio.run(_make_template(postgres))
        yield Servers(postgres, valkey, folder)


async def _make_template(postgres: Postgres) -> None:
    connection = await asyncpg.connect(postgres.dsn)
    await connection.execute("create database template_daguerre")
    await connection.close()
    await create_schema(postgres.dsn_of("template_daguerre"))


@dataclass(frozen=True)
class EmptyDatabase:
    url: str
    connection: Any


@pytest.fixture
async def empty_database(servers: Servers) -> AsyncIterator[EmptyDatabase]:
    """Yields a database with empty tables, and a connection to it. Resetting one is faster than creating one."""
    name = servers.free_databases.pop() if servers.free_databases else await _create_database(servers)
    url = servers.postgres.dsn_of(name)
    connection = await asyncpg.connect(url)
    yield EmptyDatabase(url, connection)
    if connection.is_closed():  # by the test, or by the server that it stopped
        connection = await asyncpg.connect(url)
    if await reset_database(connection):
        servers.free_databases.append(name)
    await connection.close()


@pytest.fixture
def database_url(empty_database: EmptyDatabase) -> str:
    return empty_database.url


@pytest.fixture
def connection(empty_database: EmptyDatabase) -> Any:
    return empty_database.connection


async def _create_database(servers: Servers) -> str:
    name = f"test_{next(_numbers)}"
    connection = await asyncpg.connect(servers.postgres.dsn)
    await connection.execute(f"create database {name} template template_daguerre strategy file_copy")
    await connection.close()
    return name


@pytest.fixture
def storage_folder(servers: Servers) -> Iterator[Path]:
    """Yields the folder for the storage of images. It may have the folders of a storage, but no files."""
    folder = servers.free_storages.pop() if servers.free_storages else servers.folder / f"storage-{next(_numbers)}"
    folder.mkdir(exist_ok=True)  # a worker expects that it exists
    yield folder
    if reset_storage(folder):
        servers.free_storages.append(folder)


@pytest.fixture(scope="session")
def object_store_server() -> Iterator[ObjectStoreServer]:
    with temporary_folder() as folder, ObjectStoreServer(folder) as server:
        yield server


NewObjectStore = Callable[[], ObjectStore]


@pytest.fixture
def new_object_store(request: pytest.FixtureRequest) -> NewObjectStore:
    """Returns a function that returns an empty object store. The server starts with the first one."""

    def create() -> ObjectStore:
        server: ObjectStoreServer = request.getfixturevalue("object_store_server")
        return ObjectStore(StoreUrl("s3", BUCKET, f"store-{next(_numbers)}"), server.environment())

    return create


@pytest.fixture
def redis_url(servers: Servers) -> str:
    return empty(servers.valkey)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """Yields a client of the Redis of the queue."""
    client = jobs.open_redis(redis_url)
    yield client
    await client.aclose(close_connection_pool=True)


@pytest.fixture(scope="module")
def own_valkey() -> Iterator[Valkey]:
    """Yields a Valkey for tests of a module that stop it. Their `redis_url` is `empty(own_valkey)`."""
    with temporary_folder() as folder, Valkey(folder / "valkey") as server:
        yield server


def empty(valkey: Valkey) -> str:
    """Deletes all keys and resets the statistics. Returns the URL."""
    with sync_redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        client.config_resetstat()
    return valkey.url


@pytest.fixture
def settings(
    request: pytest.FixtureRequest, database_url: str, redis_url: str, tmp_path: Path, storage_folder: Path
) -> Settings:
    """Returns the settings of a test, which `@pytest.mark.settings(name=value)` can change."""
    marker = request.node.get_closest_marker("settings")
    places = {
        "data": tmp_path,
        "metrics_dir": tmp_path / "metrics",
        "storage": storage_folder,
        "renditions_dir": tmp_path / "renditions",
        "database_url": database_url,
        "redis_url": redis_url,
    }
    if marker is None:
        return _parse_defaults().model_copy(update=places)
    assert marker.kwargs.keys() <= Settings.model_fields.keys(), "unknown setting"
    return Settings(**_DEFAULTS | places | marker.kwargs)


_DEFAULTS: dict[str, Any] = {
    "public_url": "https://img.example.com",
    "wait_s": 5,
    "database_connections": 4,
    "probe_processes": 1,
    "render_processes": 1,
}


@functools.cache
def _parse_defaults() -> Settings:
    return Settings(**_DEFAULTS)


@dataclass(frozen=True)
class Tenant:
    """An account with a key."""

    id: AccountId
    name: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Api-Key": self.key}


NewTenant = Callable[..., Awaitable[Tenant]]


@pytest.fixture
def new_tenant(connection: Any) -> NewTenant:
    async def create(name: str | None = None, max_bytes: int = 2 << 30) -> Tenant:
        name = name or f"tenant-{next(_numbers)}"
        account_id = await create_account(connection, name, max_bytes)
        return Tenant(account_id, name, await create_key(connection, name))

    return create


@pytest.fixture
async def tenant(new_tenant: NewTenant) -> Tenant:
    return await new_tenant()


Client = TestClient[Any, Any]


@pytest.fixture
async def api(aiohttp_client: Callable[..., Awaitable[Client]], settings: Settings) -> Client:
    """Returns a client of the application in this process. Jobs wait until a test runs a worker."""
    return await aiohttp_client(create_app(settings))


def resources_of(api: Client) -> Resources:
    """Returns the resources of the application, for tests of its internals."""
    assert isinstance(api.server, TestServer)
    return api.server.app[RESOURCES]


@asynccontextmanager
async def serve_api(settings: Settings) -> AsyncIterator[int]:
    """Yields the port of the application in the HTTP server that is used in production."""
    runner = Runner(create_app(settings), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.fixture
async def port(settings: Settings) -> AsyncIterator[int]:
    async with serve_api(settings) as port:
        yield port


@asynccontextmanager
async def run_worker(
    settings: Settings, *, limits: DecoderLimits = DEFAULT_LIMITS, **overrides: Any
) -> AsyncIterator[None]:
    """Runs a worker in this process within the block, with decoder processes as in production."""
    changed = settings.model_copy(update=overrides)
    redis = jobs.open_redis(changed.redis_url)
    async with open_resources(changed, redis, limits=limits) as resources:
        workers = [
            make_probe_worker(changed, resources, redis),
            make_render_worker(changed, resources, jobs.open_redis(changed.redis_url)),
        ]
        running = [asyncio.create_task(worker.async_run()) for worker in workers]
        try:
            yield
        finally:
            while not all(task.done() for task in running):
                for task in running:
                    task.cancel()
                await asyncio.wait(running, timeout=0.2)
            for worker in workers:
                await worker.close()


@pytest.fixture
async def worker(settings: Settings) -> AsyncIterator[None]:
    async with run_worker(settings):
        yield


@pytest.fixture
def server_folder() -> Iterator[Path]:
    """Yields a folder with a short path, for servers."""
    with temporary_folder() as path:
        yield path


@pytest.fixture
async def daguerre(settings: Settings, tenant: Tenant, tmp_path: Path) -> AsyncIterator[Daguerre]:
    """Yields a helper that starts processes of Daguerre. Asserts at its end that none of them has logged the key."""
    async with processes_of(settings, tenant.key, tmp_path / "logs") as started:
        yield started


@pytest.fixture
async def picture_url() -> AsyncIterator[str]:
    """Yields the URL of a picture, for a service with `fetch_allow="127.0.0.0/8"`."""

    async def picture(_: web.Request) -> web.Response:
        return web.Response(body=jpeg(), content_type="image/jpeg")

    app = web.Application()
    app.router.add_get("/picture.jpg", picture)
    async with TestServer(app) as server:
        yield str(server.make_url("/picture.jpg"))


@dataclass(frozen=True)
class Burst:
    """The numbers of completed, failed and retried jobs of a burst."""

    complete: int
    failed: int
    retried: int


RunBurst = Callable[[], Awaitable[Burst]]


@pytest.fixture
def burst(settings: Settings) -> RunBurst:
    async def run() -> Burst:
        redis = jobs.open_redis(settings.redis_url)
        async with open_resources(settings, redis) as resources:
            worker = make_probe_worker(settings, resources, redis, burst=True)
            await worker.async_run()
            counts = Burst(worker.jobs_complete, worker.jobs_failed, worker.jobs_retried)
            await worker.close()
            return counts

    return run
