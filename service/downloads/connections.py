"""Connections to origins: made to permitted addresses only, whatever a name or a redirect says.

A name is resolved once for each connection, all of its addresses must be permitted, and one of those is connected to.
The socket factory looks at the address again in the moment of connecting: a literal address never meets a resolver.
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

# Answers before the answer (RFC 9110, section 15.2). An honest origin sends one or two; Go's net/http takes 5.
MAX_INTERIM_ANSWERS = 20
# Of what arrives before the answer, so much is parsed before a look at what it was.
_HEAD_PIECE_BYTES = 4096
# Of all look-ups, an account has at most three quarters, and less beside others.
_ACCOUNT_WEIGHT = 3
# The account whose picture is fetched in this context: aiohttp passes nothing on to its resolver.
account: ContextVar[Hashable] = ContextVar("account", default=None)


class AddressRefused(Exception):
    """A URL leads to an address that is not permitted; not an OSError, so that no other address is tried."""


# What socket.getaddrinfo answers.
_Found: TypeAlias = Sequence[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]]


class GuardedResolver(AbstractResolver):
    """Looks names up in threads, `lookups` at once, of which no `account` takes all.

    A look-up cannot be ended, so one that nobody waits for any more keeps its place until the name server answers or
    the system gives up, though its download gave its own place back. Each has a thread of its own, and not one of a
    pool: the interpreter, when it ends, waits for a pool's threads.
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
            found = await self._look_up(host, port, family)
        except UnicodeError as error:  # a label that is empty or too long
            raise socket.gaierror(socket.EAI_NONAME, "not a host name") from error
        results = []
        for found_family, _, proto, _, address in found:
            numeric = str(address[0])
            if not self._allowed.permits(numeric, port):
                raise AddressRefused
            results.append(
                ResolveResult(
                    hostname=host,
                    host=numeric,
                    port=port,
                    family=found_family,
                    proto=proto,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        return results

    def _look_up(self, host: str, port: int, family: socket.AddressFamily) -> asyncio.Future[_Found]:
        holder = {account.get(): _ACCOUNT_WEIGHT}
        try:
            with self._lock:
                self._slots.acquire(holder)
        except (
            SlotsFull,
            ShareExceeded,
        ) as error:  # to wait for a place would be the origin's time, and pass for its slowness
            raise ServiceError("busy") from error
        looked_up: Future[_Found] = Future()
        looked_up.set_running_or_notify_cancel()  # so that it takes its result even if nobody waits for it

        def give_back() -> None:
            with self._lock:
                self._slots.release(holder)

        def run() -> None:
            try:
                end = partial(looked_up.set_result, socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
            except Exception as error:  # of any kind: the task that waits raises it
                end = partial(looked_up.set_exception, error)
            give_back()
            end()

        try:
            threading.Thread(target=run, name="dns", daemon=True).start()
        except RuntimeError as error:  # the system gives no more threads
            give_back()
            raise ServiceError("busy") from error
        return asyncio.wrap_future(looked_up)

    async def close(self) -> None:
        """Look-ups under way end by themselves."""


class OriginConnection(ResponseHandler):
    """Ends after too many interim answers. aiohttp parses all that come, for as long as the time limit lets them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._interim_answers = 0
        self._is_answered = False

    def data_received(self, data: bytes) -> None:
        start = 0
        while start < len(data) and not self._is_answered and self._exception is None:
            super().data_received(data[start : start + _HEAD_PIECE_BYTES])
            start += _HEAD_PIECE_BYTES
        if not data or (self._is_answered and start < len(data)):  # aiohttp goes on without data after a pause
            super().data_received(data[start:])

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take the head of an answer."""
        if not self._is_answered and 100 <= data[0].code < 200:
            self._interim_answers += 1
        else:
            self._is_answered = True
        if self._interim_answers <= MAX_INTERIM_ANSWERS:
            super().feed_data(data, size)
        elif self.transport is not None:
            self.set_exception(ClientPayloadError("too many interim answers"))
            self.transport.close()


def guarded_connector(allowed: AllowedAddresses, resolver: AbstractResolver) -> TCPConnector:
    """Keeps no connection and no look-up, so that each is checked; the downloads have a bound of their own."""

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
        ssl=_trust(),
        use_dns_cache=False,
        force_close=True,
        limit=0,
    )
    # Private to aiohttp; tests/integration/downloads/test_downloads.py holds it.
    connector._factory = cast("partial[ResponseHandler]", partial(OriginConnection, loop=connector._loop))
    return connector


@cache
def _trust() -> ssl.SSLContext:
    """Mozilla's certificates, so that https works on a machine that has none, and those of the machine.

    Read once, since that takes long.
    """
    context = ssl.create_default_context(cafile=certifi.where())
    context.load_default_certs()
    return context
