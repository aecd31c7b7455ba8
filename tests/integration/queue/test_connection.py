"""A pipeline keeps the order of its commands, opens its connection again, and waits for no reply for too long."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, NoScriptError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.queue.connection import Pipeline, Redis, Script
from service.queue.jobs import open_redis
from tests.conftest import Servers
from tests.support.waiting import until

Respond = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


@asynccontextmanager
async def serve(respond: Respond, **options: Any) -> AsyncIterator[int]:
    """Runs a server that calls `respond` for each connection, and yields its port. Connections end by themselves."""
    handlers: list[asyncio.Task[Any]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(cast("asyncio.Task[Any]", asyncio.current_task()))
        with suppress(OSError):
            await respond(reader, writer)
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, **options)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*handlers)


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


@asynccontextmanager
async def pipeline_of(port: int, *, scheme: str = "redis", query: str = "", **options: Any) -> AsyncIterator[Pipeline]:
    redis = open_redis(f"{scheme}://127.0.0.1:{port}{query}")
    pipeline = Pipeline(redis.connection_pool, **options)
    yield pipeline
    pipeline.close()
    await redis.aclose(close_connection_pool=True)


async def count_blocked(redis: Redis) -> int:
    return int((await redis.info("clients"))["blocked_clients"])


async def test_callers_share_the_connection_and_get_their_own_replies(redis: Redis) -> None:
    clients = len(await redis.client_list())
    replies = await asyncio.gather(*(redis.pipelined.send(("ECHO", str(number))) for number in range(300)))
    assert replies == [b"%d" % number for number in range(300)]
    assert len(await redis.client_list()) == clients + 1


async def test_group_of_commands_returns_the_last_reply(redis: Redis) -> None:
    assert await redis.pipelined.send(("SET", "key", b"\0\r\n"), ("GET", "key")) == b"\0\r\n"


async def test_failed_command_of_a_group_is_raised(redis: Redis) -> None:
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await redis.pipelined.send(("RPUSH", "key", "x"), ("GET", "key"), ("ECHO", "last"))
    assert await redis.pipelined.send(("ECHO", "next")) == b"next"


async def test_cancelled_caller_does_not_shift_the_replies(redis: Redis) -> None:
    waiting = asyncio.create_task(redis.pipelined.send(("BLPOP", "list", 0.2), ("ECHO", "one"), wait_s=0.2))
    await until(lambda: count_blocked(redis))
    waiting.cancel()
    assert await redis.pipelined.send(("ECHO", "two")) == b"two"


async def test_script_is_sent_once(redis: Redis) -> None:
    await redis.script_flush()
    script = Script("return {KEYS[1], ARGV[1], ARGV[2]}")
    with pytest.raises(NoScriptError):
        await redis.pipelined.send(script.command(["key"], ["a", 1]))
    for _ in range(2):
        assert await script.run(redis.pipelined, ["key"], ["a", 1]) == [b"key", b"a", b"1"]
    assert await redis.pipelined.send(script.command(["key"], ["b", 2])) == [b"key", b"b", b"2"]


async def test_lost_connection_fails_its_commands_and_is_opened_again(redis: Redis, servers: Servers) -> None:
    await redis.pipelined.send(("ECHO", "first"))
    waiting = asyncio.create_task(redis.pipelined.send(("BLPOP", "list", 30), wait_s=30))
    await until(lambda: count_blocked(redis))
    servers.valkey.stop()
    with pytest.raises(RedisConnectionError):
        await waiting
    with pytest.raises(RedisConnectionError):
        await redis.pipelined.send(("ECHO", "down"))
    servers.valkey.start()
    assert await redis.pipelined.send(("ECHO", "again")) == b"again"


async def test_reply_that_never_comes_times_out(redis: Redis) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if b"CLIENT" in data:  # redis-py introduces itself
                writer.write(b"+OK\r\n" * data.count(b"SETINFO"))

    async with serve(hang) as port, pipeline_of(port, reply_timeout_s=0.2) as pipeline:
        sent = [asyncio.create_task(pipeline.send(("ECHO", "x"))) for _ in range(3)]
        for each in sent:
            with pytest.raises(RedisTimeoutError):
                await asyncio.wait_for(each, 5)


async def test_command_that_waits_on_the_server_has_more_time(redis: Redis) -> None:
    pipeline = Pipeline(redis.connection_pool, reply_timeout_s=0.2)
    assert await pipeline.send(("BLPOP", "list", 0.5), ("ECHO", "x"), wait_s=0.5) == b"x"
    pipeline.close()


async def test_closing_fails_what_waits(redis: Redis) -> None:
    pipeline = redis.add_pipeline()
    waiting = asyncio.create_task(pipeline.send(("BLPOP", "list", 30), wait_s=30))
    await until(lambda: count_blocked(redis))
    await redis.aclose()
    with pytest.raises(RedisConnectionError):
        await asyncio.wait_for(waiting, 5)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", OutOfMemoryError),
        (b"-READONLY You can't write against a read only replica.\r\n", ReadOnlyError),
        (b"-NOSCRIPT No matching script.\r\n", NoScriptError),
        (b"garbage\r\n", InvalidResponse),
        (b"", RedisConnectionError),
    ],
)
async def test_errors_are_those_of_redis_py(reply: bytes, error: type[Exception]) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            introductions = data.count(b"SETINFO")
            writer.write(b"+OK\r\n" * introductions or reply)
            if not introductions and not reply:
                break

    async with serve(respond) as port, pipeline_of(port) as pipeline:
        with pytest.raises(error):
            await asyncio.wait_for(pipeline.send(("ECHO", "x")), 5)


@pytest.mark.needs("openssl")
async def test_options_of_the_url_hold(tmp_path: Path, servers: Servers, redis: Redis) -> None:
    """TLS, a user with a password, and a database."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=test"
    command += " -addext subjectAltName=IP:127.0.0.1 -out certificate.pem -keyout key.pem"
    process = await asyncio.create_subprocess_exec(*command.split(), cwd=tmp_path, stderr=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def to_valkey(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        valkey_reader, valkey_writer = await asyncio.open_unix_connection(servers.valkey.socket_path)
        await asyncio.gather(relay(reader, valkey_writer), relay(valkey_reader, writer))

    await redis.acl_setuser(
        "somebody", enabled=True, passwords=["+secret"], categories=["+@all"], keys=["*"], reset=True
    )
    try:
        async with serve(to_valkey, ssl=context) as port:
            url = f"rediss://somebody:secret@127.0.0.1:{port}/2?ssl_ca_certs={certificate}"
            client = open_redis(url)
            await client.pipelined.send(("SET", "key", "of database 2"))
            info = (await client.pipelined.send(("CLIENT", "INFO"))).decode()
            assert "db=2 " in info
            assert "user=somebody " in info
            await client.pipelined.send(("DEL", "key"))
            await client.aclose(close_connection_pool=True)
    finally:
        await redis.acl_deluser("somebody")
