"""The client address of a request, directly or behind trusted proxies."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

import structlog
from aiohttp import web

from service.config.values import Network

log = structlog.get_logger("service.api")

_WITH_PORT = re.compile(r"(?P<ipv4>[0-9.]+):[0-9]+|\[(?P<ipv6>[0-9A-Fa-f:.]+)\](?::[0-9]+)?")

_FORWARDED_FOR = "X-Forwarded-For"
# The headers in which proxies name their client (RFC 7239, and nginx's custom). Only the first is read.
_PROXY_HEADERS = (_FORWARDED_FOR, "Forwarded", "X-Real-IP")
# Clients can forge these headers, so at most this many addresses are logged.
MAX_WARNINGS = 20


class ProxyWarnings:
    """Warns once about each proxy whose clients cannot be distinguished: they share one rate limit."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = trusted
        self._addresses: set[str] = set()

    def check(self, request: web.BaseRequest) -> None:
        address = request.remote
        if not address or address in self._addresses or len(self._addresses) >= MAX_WARNINGS:
            return
        header = next((name for name in _PROXY_HEADERS if name in request.headers), None)
        if header is None:
            return
        if not _is_trusted(address, self._trusted):
            self._addresses.add(address)
            log.warning("proxy.not_trusted", address=address, header=header, setting="DAGUERRE_TRUSTED_PROXIES")
        elif header != _FORWARDED_FOR:
            self._addresses.add(address)
            log.warning("proxy.address_missing", address=address, header=header, missing=_FORWARDED_FOR)


def client_address(request: web.BaseRequest, trusted: Sequence[Network]) -> str:
    """Returns the nearest address that is not a trusted proxy's.

    Each proxy appends the address of its own client to X-Forwarded-For. The client can forge what precedes that.
    """
    address = request.remote or ""
    if not trusted:
        return address
    forwarded = [part.strip() for value in request.headers.getall(_FORWARDED_FOR, []) for part in value.split(",")]
    while forwarded and _is_trusted(address, trusted):
        address = _without_port(forwarded.pop())
    return address


def _without_port(text: str) -> str:
    """Returns the address without a port, which some proxies add and which changes with each connection."""
    match = _WITH_PORT.fullmatch(text)
    return text if match is None else match["ipv4"] or match["ipv6"]


def _is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if parsed.version == 6 else None  # from a socket for both IPv4 and IPv6
    return any((mapped or parsed) in network for network in trusted)
