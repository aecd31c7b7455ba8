"""The natural size of an SVG, as browsers show it in an `img` (CSS Images 3, section 5; CSS Values 4, section 6)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

# The size of a replaced element without a size of its own (CSS 2.2, section 10.3.2).
_DEFAULT_WIDTH, _DEFAULT_HEIGHT = 300.0, 150.0
_MEDIUM_PX = 16.0
_KEYWORDS = {
    "xx-small": 9.0,
    "x-small": 10.0,
    "small": 13.0,
    "medium": _MEDIUM_PX,
    "large": 18.0,
    "x-large": 24.0,
    "xx-large": 32.0,
    "xxx-large": 48.0,
    "smaller": _MEDIUM_PX / 1.2,
    "larger": _MEDIUM_PX * 1.2,
}
_PX = {"": 1.0, "px": 1.0, "in": 96.0, "cm": 96 / 2.54, "mm": 96 / 25.4, "q": 96 / 101.6, "pt": 96 / 72, "pc": 16.0}
# Lengths relative to the font size. Those that depend on the font have the values of CSS for an unknown one.
_EM = {"em": 1.0, "rem": 1.0, "ex": 0.5, "ch": 0.5, "ic": 1.0, "cap": 0.75, "lh": 1.2, "rlh": 1.2}
_LENGTH = re.compile(r"([+-]?(?:\d+|\d*\.\d+)(?:e[+-]?\d+)?)([a-z]*|%)", re.IGNORECASE)
_FONT_SIZE = re.compile(r"(?:^|;)\s*font-size\s*:\s*([^;!]+)", re.IGNORECASE)
_FONT = re.compile(r"(?:^|;)\s*font\s*:[^;]*?([\d.]+[a-z%]+)(?=[\s/])", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\s,]+")
# Longer values are hostile.
_MAX_STYLE_CHARS, _MAX_LENGTH_CHARS = 4_000, 100
# About the maximum of browsers. Floats are exact up to here.
_MAX_SIDE = 1e9


class NaturalSize(NamedTuple):
    """The size in whole pixels, at least 1 unless the document has 0 or less, and the root element's font size in
    pixels.
    """

    width: int
    height: int
    font_px: float


def natural_size(attributes: Mapping[str, str]) -> NaturalSize:
    """Returns the size from the attributes of the root element. Percentages are ignored, because they have no
    reference.
    """
    font_px = _font_px(attributes)
    width = _length_px(attributes.get("width", ""), font_px)
    height = _length_px(attributes.get("height", ""), font_px)
    ratio = _ratio(attributes)
    if _is_stretched(attributes) and None in {width, height}:  # then browsers ignore a single side
        width, height = _DEFAULT_WIDTH, _DEFAULT_HEIGHT
    if width is None and height is None:
        width = min(_DEFAULT_WIDTH, _DEFAULT_HEIGHT * ratio) if ratio else _DEFAULT_WIDTH
    if width is None:
        width = height * ratio if ratio and height is not None else _DEFAULT_WIDTH
    if height is None:
        height = width / ratio if ratio else _DEFAULT_HEIGHT
    return NaturalSize(_whole(width), _whole(height), font_px)


def _whole(side: float) -> int:
    return max(1, int(min(side, _MAX_SIDE) + 0.5)) if side > 0 else 0


def _length_px(text: str, font_px: float) -> float | None:
    """Returns None for percentages, units of the viewport, and anything else."""
    match = _LENGTH.fullmatch(text.strip()[:_MAX_LENGTH_CHARS])
    if match is None:
        return None
    unit = match[2].lower()
    factor = _PX.get(unit) or _EM.get(unit, 0) * font_px
    return max(0.0, float(match[1]) * factor) if factor else None


def _font_px(attributes: Mapping[str, str]) -> float:
    style = attributes.get("style", "")[:_MAX_STYLE_CHARS]
    declared = _FONT_SIZE.findall(style) or _FONT.findall(style) or [attributes.get("font-size", "")]
    text = declared[-1].strip().lower()
    if text in _KEYWORDS:
        return _KEYWORDS[text]
    if text.endswith("%"):
        text = f"{text[:-1]}em"
        size = _length_px(text, _MEDIUM_PX / 100)
    else:
        size = _length_px(text, _MEDIUM_PX)
    return _MEDIUM_PX if size is None else min(size, _MAX_SIDE)


def _is_stretched(attributes: Mapping[str, str]) -> bool:
    return attributes.get("preserveAspectRatio", "").split()[:1] == ["none"]


def _ratio(attributes: Mapping[str, str]) -> float | None:
    """Returns width / height of the view box, or None if it does not keep its aspect ratio."""
    if _is_stretched(attributes):
        return None
    try:
        _, _, width, height = map(float, _SEPARATORS.split(attributes.get("viewBox", "").strip()))
    except ValueError:
        return None
    ratio = width / height if width > 0 and height > 0 else 0
    return ratio if 1 / _MAX_SIDE < ratio < _MAX_SIDE else None
