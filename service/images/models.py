"""An image's row, before and after it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from service.ids import AccountId, ImageId
from service.images.idempotency import IdempotencyKey


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


class Large(NamedTuple):
    """Which of the large columns a statement answers too, as its last parameters say."""

    exif: bool = False
    mini_preview: bool = False


SLIM = Large()
WHOLE = Large(exif=True, mini_preview=True)

# What a statement selects or returns to make an Image, without what is large.
COLUMNS = """
images.id, images.account_id, images.state, images.size, images.sha256, images.tags, images.created_at,
images.format, images.width, images.height, images.orientation, images.pages, images.has_alpha, images.error,
images.error_kind
"""


@dataclass(frozen=True, slots=True)
class NewImage:
    """An upload before it has its row."""

    id: ImageId
    account_id: AccountId
    size: int
    sha256: bytes
    tags: Sequence[str]
    idempotency_key: IdempotencyKey | None = None
