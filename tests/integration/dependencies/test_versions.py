"""A server that is too old is named at the start, in one sentence."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.config.settings import Settings, SettingsError
from service.dependencies.versions import MIN_POSTGRES, MIN_REDIS, require_servers
from service.queue import jobs
from service.schema.changes import create_schema
from service.storage.local.originals import LocalOriginals
from tests.support.commands import daguerre_process

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def message(kind: bytes, body: bytes) -> bytes:
    """One message of PostgreSQL's protocol."""
    return kind + struct.pack("!I", len(body) + 4) + body


@asynccontextmanager
async def postgres_of(version: str) -> AsyncIterator[str]:
    """A server that starts a session as PostgreSQL of this version, and sends nothing else."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length, code = struct.unpack("!II", await reader.readexactly(8))
        if code == 80877103:  # is there TLS?
            writer.write(b"N")
            length, _ = struct.unpack("!II", await reader.readexactly(8))
        await reader.readexactly(length - 8)
        settings = {"server_version": version, "client_encoding": "UTF8", "integer_datetimes": "on"}
        writer.write(message(b"R", struct.pack("!I", 0)))
        for name, value in settings.items():
            writer.write(message(b"S", f"{name}\0{value}\0".encode()))
        writer.write(message(b"K", struct.pack("!II", 1, 1)) + message(b"Z", b"I"))
        await reader.read(1)  # the end of the connection, or a message that says so
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        yield f"postgresql://u:p@127.0.0.1:{server.sockets[0].getsockname()[1]}/x"


@asynccontextmanager
async def redis_of(version: str) -> AsyncIterator[str]:
    """A server that calls itself Redis of this version; without a version it refuses to say."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = f"# Server\r\nredis_version:{version}\r\n".encode()
        while line := await reader.readline():
            words = [(await reader.readline(), await reader.readline())[1] for _ in range(int(line[1:]))]
            if words[0].strip().upper() != b"INFO":
                writer.write(b"+OK\r\n")
            elif version:
                writer.write(b"$%d\r\n%s\r\n" % (len(info), info))
            else:
                writer.write(b"-NOPERM this user has no permissions to run the 'info' command\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


async def require(database_url: str, redis_url: str) -> None:
    redis = jobs.open_redis(redis_url)
    try:
        await require_servers(database_url, redis)
    finally:
        await redis.aclose(close_connection_pool=True)


@pytest.mark.parametrize("version", ["14.19 (Debian 14.19-1)", "12.22", "9.6.24"])
async def test_an_old_postgresql_is_refused(redis_url: str, version: str) -> None:
    async with postgres_of(version) as url:
        for work in (require(url, redis_url), create_schema(url)):
            with pytest.raises(
                SettingsError, match=r"^DAGUERRE_DATABASE_URL: PostgreSQL \d+\.\d+ is too old: .* 15 or newer$"
            ):
                await work


@pytest.mark.parametrize("version", ["6.2.14", "5.0.7", "3.2.1"])
async def test_an_old_redis_is_refused(database_url: str, version: str) -> None:
    async with redis_of(version) as url:
        with pytest.raises(SettingsError, match=rf"^DAGUERRE_REDIS_URL: Redis {version} is too old: .* 7\.0 or newer"):
            await require(database_url, url)


@pytest.mark.parametrize("version", ["7.0.15", "7.2.4", "8.2.1", "10.0.0", "255.255.255", "unstable", ""])
async def test_supported_redis_is_accepted(database_url: str, version: str) -> None:
    async with redis_of(version) as url:
        await require(database_url, url)


@pytest.mark.parametrize("version", ["15.0", "15.18 (Debian 15.18-0+deb12u1)", "18.6", "19beta1"])
async def test_supported_postgresql_is_accepted(redis_url: str, version: str) -> None:
    async with postgres_of(version) as url:
        await require(url, redis_url)


async def test_unavailable_servers_are_accepted() -> None:
    await require("postgresql://127.0.0.1:1/x", "redis://127.0.0.1:1/0")


@pytest.mark.parametrize("command", ["serve --port 0 --processes 1", "serve --port 0 --processes 2", "worker"])
async def test_process_exits_with_a_sentence(settings: Settings, command: str) -> None:
    LocalOriginals(settings.storage_folder).prepare()
    async with redis_of("6.0.16") as url:
        values = settings.model_copy(update={"redis_url": url}).model_dump(exclude_unset=True)
        environment = {f"DAGUERRE_{name.upper()}": str(value) for name, value in values.items()}
        result = await asyncio.to_thread(daguerre_process, *command.split(), **environment)
    assert result.returncode == 1
    assert result.stderr.count("Error: DAGUERRE_REDIS_URL: Redis 6.0.16 is too old") == 1, result.stderr
    assert "Traceback" not in result.stderr


def test_readme_names_the_minimum_versions() -> None:
    readme = (ROOT / "docs/operations.md").read_text()
    assert f"PostgreSQL {MIN_POSTGRES} or newer" in readme
    assert f"Redis {MIN_REDIS[0]}.{MIN_REDIS[1]} or newer" in readme
