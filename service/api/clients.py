"""Which address a request comes from."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from aiohttp import web

from service.settings import Network

_WITH_PORT = re.compile(r"(?P<ipv4>[0-9.]+):[0-9]+|\[(?P<ipv6>[0-9A-Fa-f:.]+)\](?::[0-9]+)?")


def client_address(request: web.BaseRequest, trusted: Sequence[Network]) -> str:
    """The nearest one that is no trusted proxy's: each of those appends to X-Forwarded-For whom it was asked by, and
    what stands before that is the client's to invent.
    """
    address = request.remote or ""
    if not trusted:
        return address
    forwarded = [part.strip() for value in request.headers.getall("X-Forwarded-For", []) for part in value.split(",")]
    while forwarded and _is_trusted(address, trusted):
        address = _without_port(forwarded.pop())
    return address


def _without_port(text: str) -> str:
    """Some proxies tell it too, and a client has a new one for each connection."""
    match = _WITH_PORT.fullmatch(text)
    return text if match is None else match["ipv4"] or match["ipv6"]


def _is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if parsed.version == 6 else None  # of a socket that takes both kinds
    return any((mapped or parsed) in network for network in trusted)
