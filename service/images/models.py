"""An image's row, before and after it is written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from service.errors import ServiceError
from service.ids import AccountId, ImageId


@dataclass(frozen=True, slots=True)
class Image:
    """One row. What the probe finds is None until `state` is `ready`; `exif` is JSON text, and it and
    `mini_preview` are None too where a query did not ask for them."""

    id: ImageId
    account_id: AccountId
    state: Literal["pending", "ready", "failed"]
    size: int
    sha256: bytes
    tags: list[str]
    created_at: datetime
    format: str | None
    width: int | None
    height: int | None
    orientation: int | None
    pages: int | None
    has_alpha: bool | None
    error: str | None = None
    error_kind: str | None = None
    exif: str | None = None
    mini_preview: bytes | None = None


class Include(NamedTuple):
    """Which of the large columns a statement answers too, as its last parameters say."""

    exif: bool = False
    mini_preview: bool = False


NO_BLOBS = Include()
ALL = Include(exif=True, mini_preview=True)

# What a statement selects or returns to make an Image, without what is large.
COLUMNS = """
images.id, images.account_id, images.state, images.size, images.sha256, images.tags, images.created_at,
images.format, images.width, images.height, images.orientation, images.pages, images.has_alpha, images.error,
images.error_kind
"""


_VISIBLE_ASCII = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """What the client calls its request, and the SHA-256 of the picture's URL: None where the picture is the body."""

    text: str
    url_sha256: bytes | None = None

    @classmethod
    def parse(cls, text: str, url: str | None = None) -> IdempotencyKey:
        """Raises `invalid-idempotency-key`."""
        if _VISIBLE_ASCII.fullmatch(text) is None:
            raise ServiceError("invalid-idempotency-key")
        return cls(text, None if url is None else hashlib.sha256(url.encode()).digest())


@dataclass(frozen=True, slots=True)
class NewImage:
    """An upload before it has its row."""

    id: ImageId
    account_id: AccountId
    size: int
    sha256: bytes
    tags: Sequence[str]
    idempotency_key: IdempotencyKey | None = None
