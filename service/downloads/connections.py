"""Connections to origins: made to permitted addresses only, whatever a name or a redirect says.

A name is resolved once for each connection, all of its addresses must be permitted, and one of those is connected to.
The socket factory looks at the address again in the moment of connecting: a literal address never meets a resolver.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import certifi
from aiohttp import TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult

from service.addresses import AllowedAddresses


class AddressRefused(Exception):
    """A URL leads to an address that is not permitted; not an OSError, so that no other address is tried."""


class GuardedResolver(AbstractResolver):
    """Resolves in threads of its own, since a name server may take its time: those of the disk must not wait for it."""

    def __init__(self, allowed: AllowedAddresses, threads: int) -> None:
        self._allowed = allowed
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises AddressRefused if any of the addresses is refused, and OSError for a name that has none."""
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                self._threads, partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
            )
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

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def guarded_connector(allowed: AllowedAddresses, resolver: AbstractResolver) -> TCPConnector:
    """Keeps no connection and no look-up, so that each is checked; the downloads have a bound of their own."""

    def open_socket(
        address_info: tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]],
    ) -> socket.socket:
        family, kind, proto, _, address = address_info
        if not allowed.permits(str(address[0]), int(address[1])):
            raise AddressRefused
        return socket.socket(family, kind, proto)

    return TCPConnector(
        resolver=resolver,
        socket_factory=open_socket,
        ssl=_trust(),
        use_dns_cache=False,
        force_close=True,
        limit=0,
    )


def _trust() -> ssl.SSLContext:
    """Mozilla's certificates, so that https works on a machine that has none, and those of the machine."""
    context = ssl.create_default_context(cafile=certifi.where())
    context.load_default_certs()
    return context
