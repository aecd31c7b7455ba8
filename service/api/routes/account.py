"""`/v1/account`."""

from __future__ import annotations

from aiohttp import web

from service.accounts.accounts import load_account
from service.api.authentication import authenticate
from service.api.representations import describe_account
from service.api.resources import resources
from service.http import envelope


async def show(request: web.Request) -> web.Response:
    """GET /v1/account: how many images are stored, and how much space is left."""
    service = resources(request)
    account = await authenticate(request)
    async with service.database.connection() as connection:
        return envelope.ok(describe_account(await load_account(connection, account.id)))
