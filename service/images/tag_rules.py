"""The rules for tags in query strings, JSON bodies and statements."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from service.errors import ServiceError

MAX_TAGS = 20
MAX_TAG_LENGTH = 64
# A character of NFC becomes at most 4 of NFD (UAX #15, section 13). A longer text is not normalised, because the time
# for that grows with the square of a run of combining marks.
_MAX_LENGTH_BEFORE_NFC = 4 * MAX_TAG_LENGTH
# str.isprintable would refuse the joiners of emoji and of several scripts, and characters newer than this Python.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Controls, format characters, marks and blanks, by their general category (UAX #44, table 12).
_INVISIBLE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Mn", "Mc", "Me", "Zs", "Zl", "Zp"})
# Format characters that are drawn (Prepended_Concatenation_Mark of UAX #44), such as the end of a verse.
_DRAWN = re.compile("[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd]")
# Letters and symbols that are drawn as a blank, format characters that this Python may not know, unassigned code points
# that are ignored (Default_Ignorable_Code_Point of UAX #44), and noncharacters.
_BLANK = re.compile(
    "[\u115f\u1160\u2065\u2800\u3164\uffa0\ufff0-\ufff8\ufdd0-\ufdef\U00013439-\U0001343f\U00013441\U00013442"
    "\U0001d159\U000e0000-\U000e0fff"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
    + "]"
)


def clean_tags(texts: Iterable[str]) -> list[str]:
    """Returns the tags trimmed and normalised to NFC, in their order, without empty ones and duplicates.

    Raises `invalid-parameter` for more than 20 tags, and for a tag of more than 64 characters, with control characters,
    without a visible character, or with a comma, which separates tags in query strings.
    """
    tags = list(dict.fromkeys(_normalise(text) for text in texts if text.strip(" ")))
    if len(tags) > MAX_TAGS:
        raise ServiceError("invalid-parameter", f"tags can have at most {MAX_TAGS} tags.")
    for tag in tags:
        if len(tag) > MAX_TAG_LENGTH:
            raise ServiceError("invalid-parameter", f"tags must have at most {MAX_TAG_LENGTH} characters each.")
        if not any(map(_is_visible, tag)):
            raise ServiceError("invalid-parameter", "tags must each contain a visible character.")
        if _CONTROL.search(tag) is not None:
            raise ServiceError("invalid-parameter", "tags must not contain control characters.")
        if "," in tag:
            raise ServiceError("invalid-parameter", "tags must not contain commas; send each tag separately.")
    return tags


def _normalise(text: str) -> str:
    text = text.strip()
    return text if len(text) > _MAX_LENGTH_BEFORE_NFC else unicodedata.normalize("NFC", text)


def _is_visible(character: str) -> bool:
    if unicodedata.category(character) in _INVISIBLE_CATEGORIES:
        return _DRAWN.match(character) is not None
    return _BLANK.match(character) is None
