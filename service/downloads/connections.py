"""Connections to origins, the servers of clients' URLs. Only permitted addresses are used (SSRF protection).

A name is resolved once for each connection. All of its addresses must be permitted, and one of them is used. The socket
factory checks the address again when it connects, because a literal address does not reach the resolver.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, TypeAlias, cast

import certifi
from aiohttp import ClientPayloadError, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader

from service.addresses import AllowedAddresses
from service.errors import ServiceError
from service.limits.slots import SharedSlots, ShareExceeded, SlotsFull

# Interim responses, with a status 1xx (RFC 9110, section 15.2). Ordinary origins send one or two; Go's net/http accepts
# 5.
MAX_INTERIM_RESPONSES = 20
# Before the final response, at most this much is parsed before the number of interim responses is checked.
_HEAD_CHUNK_BYTES = 4096
# An account can use at most three quarters of all look-ups, and less if others use some.
_ACCOUNT_WEIGHT = 3
# The account of the current download. aiohttp has no other way to pass it to the resolver.
account: ContextVar[Hashable] = ContextVar("account", default=None)


class AddressRefused(Exception):
    """A URL leads to an address that is not permitted. It is not an OSError, so that no other address is tried."""


# The result of socket.getaddrinfo.
_AddressInfo: TypeAlias = Sequence[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]]


class GuardedResolver(AbstractResolver):
    """Resolves host names in threads, at most `lookups` at a time. One account cannot use them all.

    A look-up cannot be cancelled. It keeps its slot until the name server responds or the system gives up, even after
    its download has ended. Each has a thread of its own, because the interpreter waits for the threads of a pool when
    it exits.
    """

    def __init__(self, allowed: AllowedAddresses, lookups: int) -> None:
        self._allowed = allowed
        self._slots = SharedSlots(lookups)
        self._lock = threading.Lock()  # for the slots

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises AddressRefused if any of the addresses is refused, OSError for a name that has none, and `busy`."""
        try:
            infos = await self._look_up(host, port, family)
        except UnicodeError as error:  # a label that is empty or too long
            raise socket.gaierror(socket.EAI_NONAME, "not a host name") from error
        results = []
        for address_family, _, proto, _, address in infos:
            numeric = str(address[0])
            if not self._allowed.permits(numeric, port):
                raise AddressRefused
            results.append(
                ResolveResult(
                    hostname=host,
                    host=numeric,
                    port=port,
                    family=address_family,
                    proto=proto,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        return results

    def _look_up(self, host: str, port: int, family: socket.AddressFamily) -> asyncio.Future[_AddressInfo]:
        holder = {account.get(): _ACCOUNT_WEIGHT}
        try:
            with self._lock:
                self._slots.acquire(holder)
        except (
            SlotsFull,
            ShareExceeded,
        ) as error:  # waiting for a slot would count as the origin's time
            raise ServiceError("busy") from error
        lookup: Future[_AddressInfo] = Future()
        lookup.set_running_or_notify_cancel()  # so that it accepts its result even if nobody waits for it

        def release() -> None:
            with self._lock:
                self._slots.release(holder)

        def run() -> None:
            try:
                finish = partial(lookup.set_result, socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
            except Exception as error:  # raised again in the task that waits
                finish = partial(lookup.set_exception, error)
            release()
            finish()

        try:
            threading.Thread(target=run, name="dns", daemon=True).start()
        except RuntimeError as error:  # the system has no more threads
            release()
            raise ServiceError("busy") from error
        return asyncio.wrap_future(lookup)

    async def close(self) -> None:
        """Does nothing: lookups in flight end by themselves."""


class OriginConnection(ResponseHandler):
    """Fails after too many interim responses. aiohttp would parse them until the time limit."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._interim_responses = 0
        self._has_response = False

    def data_received(self, data: bytes) -> None:
        start = 0
        while start < len(data) and not self._has_response and self._exception is None:
            super().data_received(data[start : start + _HEAD_CHUNK_BYTES])
            start += _HEAD_CHUNK_BYTES
        if not data or (self._has_response and start < len(data)):  # aiohttp resumes with empty data after a pause
            super().data_received(data[start:])

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Receives the head of a response."""
        if not self._has_response and 100 <= data[0].code < 200:
            self._interim_responses += 1
        else:
            self._has_response = True
        if self._interim_responses <= MAX_INTERIM_RESPONSES:
            super().feed_data(data, size)
        elif self.transport is not None:
            self.set_exception(ClientPayloadError("too many interim responses"))
            self.transport.close()


def guarded_connector(allowed: AllowedAddresses, resolver: AbstractResolver) -> TCPConnector:
    """Returns a connector that reuses neither connections nor lookups, so that each is checked. It has no connection
    limit, because downloads are limited elsewhere.
    """

    def open_socket(
        address_info: tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]],
    ) -> socket.socket:
        family, kind, proto, _, address = address_info
        if not allowed.permits(str(address[0]), int(address[1])):
            raise AddressRefused
        return socket.socket(family, kind, proto)

    connector = TCPConnector(
        resolver=resolver,
        socket_factory=open_socket,
        ssl=_ssl_context(),
        use_dns_cache=False,
        force_close=True,
        limit=0,
    )
    # A private name, because aiohttp has no other way to set the class of connections; test_slow_origins.py covers it.
    connector._factory = cast("partial[ResponseHandler]", partial(OriginConnection, loop=connector._loop))
    return connector


@cache
def _ssl_context() -> ssl.SSLContext:
    """Returns a TLS context with Mozilla's certificates, for machines that have none, and with those of the machine.

    It is cached, because loading the certificates is slow.
    """
    context = ssl.create_default_context(cafile=certifi.where())
    context.load_default_certs()
    return context
