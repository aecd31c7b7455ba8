"""How images and accounts look in answers."""

from __future__ import annotations

import base64
from datetime import UTC
from typing import Any

import msgspec

from service.accounts import Account
from service.api.parameters import Detail
from service.errors import ServiceError
from service.images import Image, NewImage
from service.probes import MIME_TYPES
from service.sizes import readable


def describe_new(new: NewImage) -> dict[str, Any]:
    """An image that no worker has looked at yet."""
    return {"id": new.id, "status": "processing", "filesize": new.size, "tags": list(new.tags)}


def describe_image(image: Image, detail: Detail, public_url: str) -> dict[str, Any]:
    """Raises the error of an image that failed."""
    if image.state == "failed":
        raise ServiceError(image.error or "unsupported-image")
    if image.state == "pending":
        return describe_new(NewImage(image.id, image.account_id, image.size, image.sha256, image.tags))
    shown: dict[str, Any] = {
        "id": image.id,
        "width": image.width,
        "height": image.height,
        "filesize": image.size,
        "tags": image.tags,
    }
    if detail.verbose and image.format is not None:
        shown |= {
            "format": image.format,
            "mime": MIME_TYPES[image.format],
            "created": image.created_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "orientation": image.orientation,
            "pages": image.pages,
            "has_alpha": image.has_alpha,
            "sha256": image.sha256.hex(),
            "url": f"{public_url.rstrip('/')}/i/{image.id}",
        }
    if detail.with_exif:
        shown["exif"] = msgspec.Raw((image.exif or "{}").encode())
    if detail.with_mini_preview:
        shown["mini_preview"] = base64.b64encode(image.mini_preview or b"").decode()
    return shown


def describe_account(account: Account) -> dict[str, Any]:
    return {
        "num_images": account.num_images,
        "storage": {
            "max": account.max_bytes,
            "max_readable": readable(account.max_bytes),
            "used": account.used_bytes,
            "used_readable": readable(account.used_bytes),
            "remaining": account.remaining_bytes,
            "remaining_readable": readable(account.remaining_bytes),
        },
    }
