"""Answers that show images, with the account beside them where it was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from aiohttp import web

from service.accounts.accounts import Account, AccountUnknown, load_account
from service.api.parameters import Detail
from service.api.representations import ImagePage, ImageView, describe_account, describe_image, describe_new
from service.api.resources import Resources
from service.errors import ServiceError
from service.http import envelope
from service.images.models import Image, NewImage


async def created(
    new: NewImage, image: Image | None, service: Resources, account: Account, detail: Detail
) -> web.Response:
    """200 with the image; 202 while no worker has looked at it."""
    shown = describe_new(new) if image is None else describe_image(image, detail, service.settings.public_url)
    await add_account([shown], service, account, detail)
    return envelope.ok(shown, status=202 if image is None else 200, no_store=True)


async def changed(
    images: Sequence[Image], service: Resources, account: Account, detail: Detail, *, as_list: bool
) -> web.Response:
    """What a change of one image, or of several, is answered: what GET shows of each."""
    shown = [describe_image(image, detail, service.settings.public_url) for image in images]
    await add_account(shown, service, account, detail)
    return envelope.ok(shown if as_list else shown[0], no_store=True)


async def add_account(
    answers: Sequence[ImageView | ImagePage], service: Resources, account: Account, detail: Detail
) -> None:
    """The account as it is now, where it was asked for.

    If it cannot be read any more it is as the key's look-up found it: what is done is never answered 503.
    """
    if not detail.with_account:
        return
    with suppress(ServiceError, AccountUnknown):
        async with service.database.connection() as connection:
            account = await load_account(connection, account.id)
    shown = describe_account(account)
    for answer in answers:
        answer.account = shown
