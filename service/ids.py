"""Identifiers: the types and formats of image ids, account ids and API keys."""

from __future__ import annotations

import re
from typing import NewType

from service.errors import ServiceError

ImageId = NewType("ImageId", str)
AccountId = NewType("AccountId", int)

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
IMAGE_ID_PATTERN = re.compile(r"[0-9A-Za-z]{7,16}")
MAX_IDS = 20
KEY_LENGTH = 40
KEY_PATTERN = re.compile(rf"[0-9A-Za-z]{{{KEY_LENGTH}}}")


def parse_image_id(text: str) -> ImageId:
    """Accepts up to 16 characters, so that ids can become longer. Raises `invalid-id`."""
    if IMAGE_ID_PATTERN.fullmatch(text) is None:
        raise ServiceError("invalid-id")
    return ImageId(text)


def parse_image_ids(text: str) -> list[ImageId]:
    """Returns the ids of a comma-separated list in their order, without duplicates. Raises `invalid-id`, e.g. for more
    than 20.
    """
    image_ids: dict[ImageId, None] = {}
    for place, part in enumerate(text.split(","), 1):
        if IMAGE_ID_PATTERN.fullmatch(part.strip()) is None:
            if text == part:
                raise ServiceError("invalid-id")
            raise ServiceError("invalid-id", f"Id number {place} is malformed; an id has 7 to 16 letters and digits.")
        image_ids[ImageId(part.strip())] = None
    if len(image_ids) > MAX_IDS:
        raise ServiceError("invalid-id", f"Send at most {MAX_IDS} ids at once.")
    return list(image_ids)
