"""Pools of connections to the Redis of a URL: one server, or the primary that sentinels name.

redis-py has no URL for Sentinel. The form here is that of other libraries (Redis-Sentinel-Url, docket, Prefect):
`redis+sentinel://[user:password@]host[:26379][,host…]/name[/database][?parameter=value]`. User, password and database
are those of the primary; `sentinel_username` and `sentinel_password` are for the sentinels. With `rediss+sentinel`, all
of them are reached with TLS.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import parse_url
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.exceptions import RedisError

from service.config.settings import SettingsError

_SENTINEL_PORT = 26379


class _SentinelPool(BlockingConnectionPool, SentinelConnectionPool):
    """Asks the sentinels for the primary before each connection, through one connection to each of them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._asking = asyncio.Lock()

    async def get_master_address(self) -> Any:
        async with self._asking:
            return await super().get_master_address()  # type: ignore[no-untyped-call]

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:  # not after a change of the primary
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.aclose()


def open_pool(url: str, *, timeout_s: float, connect_timeout_s: float, max_connections: int) -> BlockingConnectionPool:
    """Returns a pool that connects when first used. A caller waits for a free connection for at most `timeout_s`.

    Raises SettingsError for an invalid URL.
    """
    defaults = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        "timeout": timeout_s,
        "max_connections": max_connections,
    }
    try:
        options = {**defaults, **_parse(url)}
        pool = _make_sentinel_pool(url, options) if "+sentinel" in urlsplit(url).scheme else _make_pool(options)
        connection = pool.make_connection()  # type: ignore[no-untyped-call] # it does not connect yet
        if (context := getattr(connection, "ssl_context", None)) is not None:
            context.get()  # loads its files
    except TypeError as error:  # an unknown parameter
        raise SettingsError(f"DAGUERRE_REDIS_URL: {str(error).rpartition('() ')[2]}") from None
    except (ValueError, RedisError) as error:
        raise SettingsError(f"DAGUERRE_REDIS_URL: {error}") from None
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"DAGUERRE_REDIS_URL: its files for TLS cannot be used: {error.strerror}") from None
    return pool


def _make_pool(options: dict[str, Any]) -> BlockingConnectionPool:
    return BlockingConnectionPool(**options)


def _parse(url: str) -> dict[str, Any]:
    """Returns the options of a connection."""
    parts = urlsplit(url)
    if "+sentinel" in parts.scheme:
        credentials, at, _ = parts.netloc.rpartition("@")
        database = parts.path.removeprefix("/").partition("/")[2]
        url = f"{parts.scheme.partition('+')[0]}://{credentials}{at}sentinel/{database}?{parts.query}"
    options: dict[str, Any] = {**parse_url(url)}
    if parts.scheme.startswith("rediss"):
        _set_tls(options)
    return options


def _set_tls(options: dict[str, Any]) -> None:
    """redis-py 5 does not compare the host with the certificate by default."""
    if options.get("ssl_cert_reqs", "required") == "required":
        options.setdefault("ssl_check_hostname", True)
    if "ssl_certfile" in options:
        options.setdefault("ssl_keyfile", options["ssl_certfile"])  # a file with both; redis-py would use neither


def _make_sentinel_pool(url: str, options: dict[str, Any]) -> _SentinelPool:
    parts = urlsplit(url)
    is_encrypted = options.pop("connection_class", None) is not None
    del options["host"]
    sentinels = [urlsplit(f"//{server}") for server in parts.netloc.rpartition("@")[2].split(",")]
    # All sentinels but one may hang, and the connection is still made in time.
    timeout_s = options["socket_connect_timeout"] / (len(sentinels) + 1)
    manager = Sentinel(  # type: ignore[no-untyped-call]
        [(sentinel.hostname or "localhost", sentinel.port or _SENTINEL_PORT) for sentinel in sentinels],
        sentinel_kwargs={
            **{name: value for name, value in options.items() if name.startswith("ssl_")},
            "ssl": is_encrypted,
            "username": options.pop("sentinel_username", None),
            "password": options.pop("sentinel_password", None),
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
        },
    )
    return _SentinelPool(
        connection_class=SentinelManagedSSLConnection if is_encrypted else SentinelManagedConnection,
        service_name=unquote(parts.path.removeprefix("/").partition("/")[0]),
        sentinel_manager=manager,
        **options,
    )
