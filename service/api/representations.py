"""How images and accounts look in answers. The OpenAPI document's schemas are made from these classes."""

from __future__ import annotations

import base64
from datetime import UTC
from typing import Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from service.accounts import Account
from service.api.parameters import Detail
from service.errors import ServiceError
from service.images.records import Image, NewImage
from service.probes import MIME_TYPES
from service.sizes import readable


class ShownStorage(msgspec.Struct, frozen=True):
    max: int
    max_readable: str
    used: int
    used_readable: str
    remaining: int
    remaining_readable: str


class ShownAccount(msgspec.Struct, frozen=True):
    num_images: int
    storage: ShownStorage


class ProcessingImage(msgspec.Struct):
    """An image that no worker has looked at yet."""

    id: str
    status: Literal["processing"]
    filesize: int
    tags: list[str]
    account: ShownAccount | UnsetType = UNSET


class ReadyImage(msgspec.Struct):
    """What is UNSET was not asked for and does not appear."""

    id: str
    width: int
    height: int
    filesize: int
    tags: list[str]
    format: str | UnsetType = UNSET
    mime: str | UnsetType = UNSET
    created: str | UnsetType = UNSET
    orientation: int | UnsetType = UNSET
    pages: int | UnsetType = UNSET
    has_alpha: bool | UnsetType = UNSET
    sha256: str | UnsetType = UNSET
    url: str | UnsetType = UNSET
    exif: msgspec.Raw | UnsetType = UNSET
    mini_preview: str | UnsetType = UNSET
    account: ShownAccount | UnsetType = UNSET


ShownImage = ReadyImage | ProcessingImage


class FoundImages(msgspec.Struct):
    """One page of a search; `next_cursor` is null on the last."""

    images: list[ReadyImage]
    next_cursor: str | None
    account: ShownAccount | UnsetType = UNSET


Value = TypeVar("Value")


def describe_new(new: NewImage | Image) -> ProcessingImage:
    return ProcessingImage(id=new.id, status="processing", filesize=new.size, tags=list(new.tags))


def describe_image(image: Image, detail: Detail, public_url: str) -> ShownImage:
    """Raises the error of an image that failed."""
    if image.state == "failed":
        raise ServiceError(image.error or "unsupported-image")
    if image.state == "pending":
        return describe_new(image)
    return describe_ready(image, detail, public_url)


def describe_ready(image: Image, detail: Detail, public_url: str) -> ReadyImage:
    shown = ReadyImage(
        id=image.id,
        width=_found(image.width),
        height=_found(image.height),
        filesize=image.size,
        tags=image.tags,
    )
    if detail.verbose:
        shown.format = _found(image.format)
        shown.mime = MIME_TYPES[shown.format]
        shown.created = image.created_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        shown.orientation = _found(image.orientation)
        shown.pages = _found(image.pages)
        shown.has_alpha = _found(image.has_alpha)
        shown.sha256 = image.sha256.hex()
        shown.url = f"{public_url.rstrip('/')}/i/{image.id}"
    if detail.with_exif:
        shown.exif = msgspec.Raw((image.exif or "{}").encode())
    if detail.with_mini_preview:
        shown.mini_preview = base64.b64encode(image.mini_preview or b"").decode()
    return shown


def describe_account(account: Account) -> ShownAccount:
    return ShownAccount(
        num_images=account.num_images,
        storage=ShownStorage(
            max=account.max_bytes,
            max_readable=readable(account.max_bytes),
            used=account.used_bytes,
            used_readable=readable(account.used_bytes),
            remaining=account.remaining_bytes,
            remaining_readable=readable(account.remaining_bytes),
        ),
    )


def _found(value: Value | None) -> Value:
    """What every ready row holds."""
    if value is None:
        raise TypeError("a ready image lacks what its probe found")
    return value
