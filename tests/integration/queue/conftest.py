"""A client of the queue's Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from arq.connections import ArqRedis

from service.queue import jobs


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[ArqRedis]:
    client = jobs.open_redis(redis_url)
    yield client
    await client.aclose(close_connection_pool=True)
