"""`/v1/account`: the account of the API key."""

from __future__ import annotations

from aiohttp import web

from service.accounts.accounts import load_account
from service.api.middleware import authenticate
from service.api.resources import RESOURCES
from service.api.responses import describe_account, success_response


async def show(request: web.Request) -> web.Response:
    """GET /v1/account: the number of images, and the storage that is used and left."""
    service = request.app[RESOURCES]
    account = await authenticate(request, service)
    async with service.database.connection() as connection:
        return success_response(describe_account(await load_account(connection, account.id)))
