"""A second service, a database of the test's own, and an origin of pictures."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from service.api.app import create_app
from service.config.settings import Settings
from service.database import Database
from tests.conftest import Client
from tests.support.idempotency import Origin


@pytest.fixture
async def origin() -> Origin:
    return Origin()


@pytest.fixture
async def url(origin: Origin) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/{path:.*}", origin.answer)
    async with TestServer(app) as server:
        yield str(server.make_url("/a.jpg"))


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with Database.open(settings.database_url, connections=4) as database:
        yield database


@pytest.fixture
async def other_api(aiohttp_client: Callable[..., Awaitable[Client]], settings: Settings) -> Client:
    """A second process: it shares the database, the queue and the storage with `api`."""
    return await aiohttp_client(create_app(settings))
