"""The least versions of PostgreSQL and Redis: the oldest that Daguerre was tried with."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import asyncpg
from redis.exceptions import RedisError

from service.config.settings import SettingsError

# Debian 12 has both.
MIN_POSTGRES = 15
# Valkey calls itself Redis 7.2 to its clients.
MIN_REDIS = (7, 0)

_TIMEOUT_S = 2.0


async def require_servers(database_url: str, redis: Any) -> None:
    """Raises SettingsError if a server answers and is too old.

    One that is away is no reason to end, nor one that does not say.
    """
    await asyncio.gather(_require_postgres_at(database_url), _require_redis_of(redis))


async def _require_postgres_at(url: str) -> None:
    with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        connection = await asyncpg.connect(url, timeout=_TIMEOUT_S)
        try:
            require_postgres(connection)
        finally:
            connection.terminate()


async def _require_redis_of(redis: Any) -> None:
    # A connection that is lost in the middle is a RuntimeError of uvloop's. An account may not be allowed to ask.
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
        least = ".".join(map(str, MIN_REDIS))
        raise SettingsError(
            f"DAGUERRE_REDIS_URL: Redis {version[:20]} is too old: Daguerre needs Redis {least} or newer, or Valkey"
        )
