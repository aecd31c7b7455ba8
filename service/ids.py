"""Identifiers: image ids, account ids and API keys."""

from __future__ import annotations

import re
import secrets
import string
from typing import NewType

from service.errors import ServiceError

ImageId = NewType("ImageId", str)
AccountId = NewType("AccountId", int)

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
IMAGE_ID_PATTERN = re.compile(r"[0-9A-Za-z]{7,16}")
_IMAGE_ID_LENGTH = 7
MAX_IDS = 20
_KEY_LENGTH = 40
KEY_PATTERN = re.compile(rf"[0-9A-Za-z]{{{_KEY_LENGTH}}}")


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def new_image_id() -> ImageId:
    """Returns 7 characters of base62, as in the API's example. The table's primary key makes it unique."""
    return ImageId(_random(_IMAGE_ID_LENGTH))


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


def new_key() -> str:
    """Returns an API key: 40 characters of base62, 238 bits."""
    return _random(_KEY_LENGTH)
