"""The minimum versions of PostgreSQL and Redis: the oldest that Daguerre was tested with."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import asyncpg
from redis.exceptions import RedisError

from service.config.settings import SettingsError

# Both are in Debian 12.
MIN_POSTGRES = 15
# Valkey reports itself as Redis 7.2 to its clients.
MIN_REDIS = (7, 0)

_TIMEOUT_S = 2.0


async def require_servers(database_url: str, redis: Any) -> None:
    """Raises SettingsError if a server is too old. A server that is unavailable or does not report its version is
    accepted.
    """
    await asyncio.gather(_check_postgres(database_url), _check_redis(redis))


async def _check_postgres(url: str) -> None:
    with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        connection = await asyncpg.connect(url, timeout=_TIMEOUT_S)
        try:
            require_postgres(connection)
        finally:
            connection.terminate()


async def _check_redis(redis: Any) -> None:
    # uvloop raises a RuntimeError if the connection is lost meanwhile. The Redis user may not be allowed to run INFO.
    with suppress(RedisError, OSError, RuntimeError):
        async with asyncio.timeout(_TIMEOUT_S):
            _require_redis((await redis.info("server")).get("redis_version", ""))


def require_postgres(connection: Any) -> None:
    """Raises SettingsError if the server of this connection is too old."""
    version = connection.get_server_version()
    if version.major < MIN_POSTGRES:
        raise SettingsError(
            f"DAGUERRE_DATABASE_URL: PostgreSQL {version.major}.{version.minor} is too old:"
            f" Daguerre needs PostgreSQL {MIN_POSTGRES} or newer"
        )


def _require_redis(version: str) -> None:
    numbers = [int(number) for number in version.split(".")[:2] if number.isdecimal()]
    if len(numbers) == 2 and tuple(numbers) < MIN_REDIS:
        minimum = ".".join(map(str, MIN_REDIS))
        raise SettingsError(
            f"DAGUERRE_REDIS_URL: Redis {version[:20]} is too old: Daguerre needs Redis {minimum} or newer, or Valkey"
        )
