"""Which address a request comes from."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from aiohttp import web

from service.settings import Network


def client_address(request: web.Request, trusted: Sequence[Network]) -> str:
    """The nearest one that is no trusted proxy's: each of those appends to X-Forwarded-For whom it was asked by, and
    what stands before that is the client's to invent.
    """
    address = request.remote or ""
    if not trusted:
        return address
    forwarded = [part.strip() for value in request.headers.getall("X-Forwarded-For", []) for part in value.split(",")]
    while forwarded and _is_trusted(address, trusted):
        address = forwarded.pop()
    return address


def _is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if parsed.version == 6 else None  # of a socket that takes both kinds
    return any((mapped or parsed) in network for network in trusted)
