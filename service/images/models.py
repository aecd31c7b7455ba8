"""Classes of image rows, and of the data that a request adds to one."""

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
    """One row. The columns that a probe fills are None until `state` is `ready`.

    `exif` is JSON text. It and `mini_preview` are also None if the statement did not include them.
    """

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
    """The large columns that a statement returns in addition."""

    exif: bool = False
    mini_preview: bool = False


NO_BLOBS = Include()
ALL = Include(exif=True, mini_preview=True)

# The columns of an Image in its order, without the large ones.
COLUMNS = """
images.id, images.account_id, images.state, images.size, images.sha256, images.tags, images.created_at,
images.format, images.width, images.height, images.orientation, images.pages, images.has_alpha, images.error,
images.error_kind
"""


_VISIBLE_ASCII = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The client's name for a request (header Idempotency-Key), and the SHA-256 of the picture's URL, or None if the
    picture is the body.
    """

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
