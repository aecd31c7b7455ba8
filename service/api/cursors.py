"""The cursors of a search: opaque to clients, and good for the very search that gave them."""

from __future__ import annotations

import hashlib
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import msgspec

from service.errors import ServiceError
from service.ids import AccountId, parse_image_id
from service.images.search import Filters, Position

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_HEAD = struct.Struct(">8sq")  # a digest, microseconds since the epoch; then the id


def encode_cursor(position: Position, account_id: AccountId, filters: Filters) -> str:
    microseconds = (position.created_at - _EPOCH) // _MICROSECOND
    head = _HEAD.pack(_digest(position, account_id, filters), microseconds)
    return urlsafe_b64encode(head + position.id.encode()).decode().rstrip("=")


def decode_cursor(text: str, account_id: AccountId, filters: Filters) -> Position:
    """Raises `invalid-parameter` for what is no cursor, and for the cursor of another search or account."""
    with suppress(ValueError, OverflowError, struct.error, ServiceError):
        raw = urlsafe_b64decode(text + "==")
        _, microseconds = _HEAD.unpack_from(raw)
        position = Position(_EPOCH + microseconds * _MICROSECOND, parse_image_id(raw[_HEAD.size :].decode()))
        if encode_cursor(position, account_id, filters) == text:
            return position
    raise ServiceError(
        "invalid-parameter", "cursor must be the next_cursor of a search with the same filters; start without one."
    )


def _digest(position: Position, account_id: AccountId, filters: Filters) -> bytes:
    """Keeps a cursor to its search. It is no secret: a forged cursor shows nothing but the account's own images."""
    return hashlib.blake2b(msgspec.json.encode((account_id, filters, position)), digest_size=8).digest()
