"""`/v1/images/search`: the images of the account, newest first, page by page."""

from __future__ import annotations

import hashlib
import re
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import msgspec
from aiohttp import web
from multidict import MultiMapping

from service.api import parameters
from service.api.middleware import authenticate
from service.api.resources import RESOURCES
from service.api.responses import ImagePage, add_account, describe_ready, success_response
from service.errors import ServiceError
from service.ids import AccountId, parse_image_id
from service.images.search import Filters, Position, search_images
from service.media_types import MIME_TYPES

MAX_LIMIT = 100
DEFAULT_LIMIT = 20
PARAMETERS = ("tags", "format", "sha256", "created_after", "created_before", "limit", "cursor")

_FORMATS = {name: name for name in MIME_TYPES} | {"jpg": "jpeg", "tif": "tiff"}
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_LIMIT = re.compile(r"[0-9]{1,3}")
# A space stands for the `+` of a zone that was not escaped.
_DATE = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?([Zz]|[ +-][0-9]{2}(:?[0-9]{2})?)?)?"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_CURSOR_HEAD = struct.Struct(">8sq")  # a digest and microseconds since the epoch; the image's id follows


async def find(request: web.Request) -> web.Response:
    """GET /v1/images/search: a page of the ready images that match, and the cursor of the next page."""
    service = request.app[RESOURCES]
    account = await authenticate(request, service)
    detail = parameters.strict_detail(request, *PARAMETERS)
    query = parameters.query(request)
    filters, limit = _parse_filters(query, parameters.tags(request)), _parse_limit(query)
    cursor = query.get("cursor")
    after = None if cursor is None else _decode_cursor(cursor, account.id, filters)
    async with service.database.connection() as connection:
        images = await search_images(
            connection,
            account.id,
            filters,
            after,
            limit + 1,  # one more than a page, to find out whether there is a next page
            include=detail.include,
        )
    page = ImagePage([describe_ready(image, detail, service.settings.public_url) for image in images[:limit]], None)
    if len(images) > limit:
        last = images[limit - 1]
        page.next_cursor = _encode_cursor(Position(last.created_at, last.id), account.id, filters)
    await add_account([page], service, account, detail)
    return success_response(page)


def _parse_filters(query: MultiMapping[str], tags: list[str]) -> Filters:
    return Filters(
        tags=tags,
        format=_parse_format(query),
        sha256=_parse_sha256(query),
        created_after=_parse_date(query, "created_after"),
        created_before=_parse_date(query, "created_before"),
    )


def _parse_format(query: MultiMapping[str]) -> str | None:
    value = query.get("format")
    if value is None:
        return None
    if value.lower() not in _FORMATS:
        raise ServiceError("invalid-parameter", f"format must be one of {', '.join(MIME_TYPES)}.")
    return _FORMATS[value.lower()]


def _parse_sha256(query: MultiMapping[str]) -> bytes | None:
    value = query.get("sha256")
    if value is None:
        return None
    if _SHA256.fullmatch(value) is None:
        raise ServiceError("invalid-parameter", "sha256 must be 64 hexadecimal digits.")
    return bytes.fromhex(value)


def _parse_date(query: MultiMapping[str], name: str) -> datetime | None:
    """Returns a date with a time, or midnight of a date; in UTC if it has no zone."""
    value = query.get(name)
    if value is None:
        return None
    if _DATE.fullmatch(value) is not None:
        with suppress(ValueError, OverflowError):  # no such day, or none that UTC has
            moment = datetime.fromisoformat(value.upper().replace(" ", "+"))
            return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    raise ServiceError("invalid-parameter", f"{name} must be a date like 2026-11-24 or 2026-11-24T23:09:18Z.")


def _parse_limit(query: MultiMapping[str]) -> int:
    value = query.get("limit", str(DEFAULT_LIMIT))
    if _LIMIT.fullmatch(value) is None or not 1 <= int(value) <= MAX_LIMIT:
        raise ServiceError("invalid-parameter", f"limit must be a number from 1 to {MAX_LIMIT}.")
    return int(value)


def _encode_cursor(position: Position, account_id: AccountId, filters: Filters) -> str:
    """Cursors are opaque to clients, and valid only for the search that returned them."""
    microseconds = (position.created_at - _EPOCH) // _MICROSECOND
    head = _CURSOR_HEAD.pack(_digest(position, account_id, filters), microseconds)
    return urlsafe_b64encode(head + position.id.encode()).decode().rstrip("=")


def _decode_cursor(text: str, account_id: AccountId, filters: Filters) -> Position:
    """Raises `invalid-parameter` for an invalid cursor, and for the cursor of another search or account."""
    with suppress(ValueError, OverflowError, struct.error, ServiceError):
        raw = urlsafe_b64decode(text + "==")
        _, microseconds = _CURSOR_HEAD.unpack_from(raw)
        position = Position(_EPOCH + microseconds * _MICROSECOND, parse_image_id(raw[_CURSOR_HEAD.size :].decode()))
        if _encode_cursor(position, account_id, filters) == text:
            return position
    raise ServiceError("invalid-parameter", "cursor must be the next_cursor of a search with the same filters.")


def _digest(position: Position, account_id: AccountId, filters: Filters) -> bytes:
    """Binds a cursor to its search. The digest is not secret: a forged cursor shows only the account's own images."""
    return hashlib.blake2b(msgspec.json.encode((account_id, filters, position)), digest_size=8).digest()
