"""Answers that show images, with the account beside them where it was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from aiohttp import web

from service.accounts import Account, load_account
from service.api import envelope
from service.api.parameters import Detail
from service.api.representations import ShownAccount, ShownImage, describe_account, describe_image, describe_new
from service.api.resources import Resources
from service.errors import ServiceError
from service.images.records import Image, NewImage


async def created(
    new: NewImage, image: Image | None, service: Resources, account: Account, detail: Detail
) -> web.Response:
    """200 with the image; 202 while no worker has looked at it."""
    if image is None:
        return envelope.ok(await complete(describe_new(new), service, account, detail), status=202, no_store=True)
    shown = describe_image(image, detail, service.settings.public_url)
    return envelope.ok(await complete(shown, service, account, detail), no_store=True)


async def complete(shown: ShownImage, service: Resources, account: Account, detail: Detail) -> ShownImage:
    """Add the account, as it is now, where it was asked for."""
    if detail.with_account:
        shown.account = await current_account(service, account)
    return shown


async def changed(
    images: Sequence[Image], service: Resources, account: Account, detail: Detail, *, as_list: bool
) -> web.Response:
    """What a change of one image, or of several, is answered: what GET shows of each."""
    shown = [describe_image(image, detail, service.settings.public_url) for image in images]
    if detail.with_account:
        shown_account = await current_account(service, account)
        for image in shown:
            image.account = shown_account
    return envelope.ok(shown if as_list else shown[0], no_store=True)


async def current_account(service: Resources, account: Account) -> ShownAccount:
    """The account as it is now.

    If it cannot be read any more it is as the key's look-up found it: what is done is never answered 503.
    """
    with suppress(ServiceError):
        async with service.database.connection() as connection:
            account = await load_account(connection, account.id)
    return describe_account(account)
