"""Who is asking: `?key=`, `X-Api-Key` or `Authorization: Bearer`."""

from __future__ import annotations

from aiohttp import web

from service.accounts import Account
from service.api.parameters import query
from service.api.resources import resources
from service.errors import ServiceError


async def authenticate(request: web.Request) -> Account:
    """The account of the request's key, as it was at most 4 s ago. Raises `unauthorized`."""
    key = _key(request)
    if not key:
        raise ServiceError("unauthorized")
    return await resources(request).keys.owner(key)


def _key(request: web.Request) -> str | None:
    if key := query(request).get("key") or request.headers.get("X-Api-Key"):
        return key
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
