"""`/v1/images/search`: the account's images, newest first."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime

from aiohttp import web
from multidict import MultiMapping

from service.api import parameters
from service.api.authentication import authenticate
from service.api.cursors import decode_cursor, encode_cursor
from service.api.representations import FoundImages, describe_ready
from service.api.resources import resources
from service.api.responses import add_account
from service.errors import ServiceError
from service.http import envelope
from service.images.probe import MIME_TYPES
from service.images.search import Filters, Position, search_images

MAX_LIMIT = 100
DEFAULT_LIMIT = 20
NAMES = ("tags", "format", "sha256", "created_after", "created_before", "limit", "cursor")

_FORMAT_NAMES = {name: name for name in MIME_TYPES} | {"jpg": "jpeg", "tif": "tiff"}
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_LIMIT = re.compile(r"[0-9]{1,3}")
# A space stands for the `+` of a zone that was not escaped.
_DATE = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?([Zz]|[ +-][0-9]{2}(:?[0-9]{2})?)?)?"
)


async def find(request: web.Request) -> web.Response:
    """GET /v1/images/search: a page of the ready images that match, and the cursor of the next."""
    service = resources(request)
    account = await authenticate(request)
    detail, filters, limit = parameters.strict_detail(request, *NAMES), _filters(request), _limit(request)
    cursor = parameters.query(request).get("cursor")
    after = None if cursor is None else decode_cursor(cursor, account.id, filters)
    async with service.database.connection() as connection:
        found = await search_images(
            connection,
            account.id,
            filters,
            after,
            limit + 1,  # one more tells whether there is a next page
            include=detail.large,
        )
    page = FoundImages([describe_ready(image, detail, service.settings.public_url) for image in found[:limit]], None)
    if len(found) > limit:
        last = found[limit - 1]
        page.next_cursor = encode_cursor(Position(last.created_at, last.id), account.id, filters)
    await add_account([page], service, account, detail)
    return envelope.ok(page)


def _filters(request: web.Request) -> Filters:
    query = parameters.query(request)
    return Filters(
        tags=parameters.tags(request),
        format=_format(query),
        sha256=_sha256(query),
        created_after=_moment(query, "created_after"),
        created_before=_moment(query, "created_before"),
    )


def _format(query: MultiMapping[str]) -> str | None:
    given = query.get("format")
    if given is None:
        return None
    if given.lower() not in _FORMAT_NAMES:
        raise ServiceError("invalid-parameter", f"format must be one of {', '.join(MIME_TYPES)}.")
    return _FORMAT_NAMES[given.lower()]


def _sha256(query: MultiMapping[str]) -> bytes | None:
    given = query.get("sha256")
    if given is None:
        return None
    if _SHA256.fullmatch(given) is None:
        raise ServiceError("invalid-parameter", "sha256 must be 64 hexadecimal digits.")
    return bytes.fromhex(given)


def _moment(query: MultiMapping[str], name: str) -> datetime | None:
    """A date, which is its midnight, or a date with a time; in UTC unless it names a zone."""
    given = query.get(name)
    if given is None:
        return None
    if _DATE.fullmatch(given) is not None:
        with suppress(ValueError, OverflowError):  # no such day, or none that UTC has
            moment = datetime.fromisoformat(given.upper().replace(" ", "+"))
            return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    raise ServiceError("invalid-parameter", f"{name} must be a date like 2026-11-24 or 2026-11-24T23:09:18Z.")


def _limit(request: web.Request) -> int:
    given = parameters.query(request).get("limit", str(DEFAULT_LIMIT))
    if _LIMIT.fullmatch(given) is None or not 1 <= int(given) <= MAX_LIMIT:
        raise ServiceError("invalid-parameter", f"limit must be a number from 1 to {MAX_LIMIT}.")
    return int(given)
