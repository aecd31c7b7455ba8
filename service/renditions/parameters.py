"""From a URL's parameters to what they ask for: strict, and every refusal names its parameter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import parse_qsl

import msgspec

from service.accounts.presets import PRESET_NAME, PresetParameters
from service.errors import ServiceError
from service.ids import IMAGE_ID_PATTERN, ImageId
from service.renditions.transformation import MAX_SIDE, Direction, Fit, Format, Gravity, Rgba, Watermark
from service.spelling import find_nearest, quote

Metadata: TypeAlias = Literal["none", "copyright", "keep"]

MAX_PRESET_CHARACTERS = 1000
# Of a request, not of a picture: `service.renditions.signatures` reads them.
SIGNING = frozenset({"expires", "signature"})

FORMATS_BY_EXTENSION: dict[str, Format] = {
    "jpg": "jpeg",
    "jpeg": "jpeg",
    "png": "png",
    "webp": "webp",
    "avif": "avif",
    "gif": "gif",
}

_TRUE = frozenset({"true", "1", "yes", "on", ""})  # "" is a bare flag
_FALSE = frozenset({"false", "0", "no", "off"})
_COLOURS: dict[str, Rgba] = {"transparent": (0, 0, 0, 0), "white": (255, 255, 255, 255), "black": (0, 0, 0, 255)}
_HEX = re.compile(r"#?([0-9A-Fa-f]{3,4}|[0-9A-Fa-f]{6}|[0-9A-Fa-f]{8})")
_BOX = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_NUMBER = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
_DEFAULT_TRIM = 10.0
_PERCENT = (0.01, 1000.0)


class RenditionParams(msgspec.Struct, frozen=True):
    """What the parameters say, before the picture is known. What was not asked for is None, or False for a flag."""

    width: int | None = None
    height: int | None = None
    percent: float | None = None
    crop: tuple[int, int] | None = None
    dpr: float | None = None
    fit: Fit | None = None
    gravity: Gravity | None = None
    enlarge: bool = False
    background: Rgba | None = None
    trim: float | None = None
    rotate: Literal[0, 90, 180, 270] = 0
    flip: bool = False
    flop: bool = False
    grayscale: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    blur: float = 0.0
    sharpen: float = 0.0
    ellipse: bool = False
    watermark: Watermark | None = None
    frame: int | None = None
    metadata: Metadata = "none"
    keep_location: bool = False
    format: Format | None = None  # None is `auto`
    quality: int | None = None


def parse(
    parameters: Iterable[tuple[str, str]], name: str = "", presets: Mapping[str, str] | None = None
) -> RenditionParams | None:
    """What a request asks for; None where it asks for the raw image.

    `name` is what stands behind the id in the path: a known extension there is the same as `format`. Raises
    `invalid-parameter`, naming what is unknown, twice there, out of bounds or in conflict with another.
    """
    given = _collect(parameters)
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    if extension in FORMATS_BY_EXTENSION:
        if "format" in given:
            raise _invalid("format and the extension in the path are the same; send one of them.")
        given["format"] = extension
    if not given:
        return None
    if (preset := given.pop("preset", None)) is not None:
        if preset not in (presets or {}):
            raise _invalid(f"preset: this account has no preset {quote(preset)}.")
        given = _collect(parse_qsl((presets or {})[preset], keep_blank_values=True)) | given
    return _read(given)


def check_preset(text: str) -> PresetParameters:
    """Raises `invalid-parameter` for parameters that no preset may have."""
    if len(text) > MAX_PRESET_CHARACTERS:
        raise _invalid(f"A preset has at most {MAX_PRESET_CHARACTERS} characters.")
    parameters = parse_qsl(text, keep_blank_values=True)
    if any(name in SIGNING for name, _ in parameters):
        raise _invalid("signature and expires belong to a request; leave them out of the preset.")
    given = _collect(parameters)
    if not given:
        raise _invalid("A preset needs parameters, like width=300&height=300&fit=cover.")
    if "preset" in given:
        raise _invalid("preset: a preset cannot name another.")
    _read(given)
    return PresetParameters(text)


def _collect(parameters: Iterable[tuple[str, str]]) -> dict[str, str]:
    parameters = list(parameters)
    names = {name for name, _ in parameters}
    if "expires" in names and "signature" not in names:
        raise _invalid("expires is a part of signed URLs; sign the URL, or leave expires out.")
    given: dict[str, str] = {}
    for name, value in parameters:
        if name in SIGNING:
            continue
        if name not in _READERS:
            nearest = find_nearest(name, _READERS)
            advice = f"there are {', '.join(_READERS)}." if nearest is None else f"did you mean {nearest}?"
            raise _invalid(f"Unknown parameter {quote(name)}; {advice}")
        if name in given:
            raise _invalid(f"{name} is there twice; send it once.")
        given[name] = value
    return given


def _read(given: Mapping[str, str]) -> RenditionParams:
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name in _READERS:
            values[name.replace("-", "_")] = _READERS[name](name, text)
    if "size" in values:
        values |= _read_size(values.pop("size"), given)
    values["watermark"] = _read_watermark(values)
    asked = RenditionParams(**values)
    _refuse_conflicts(asked, given)
    return asked if asked.dpr is None else _scaled(asked, asked.dpr)


def _read_size(size: Mapping[str, Any], given: Mapping[str, str]) -> Mapping[str, Any]:
    for name in ("width", "height"):
        if name in given:
            raise _invalid(f"size and {name} say the same; send one of them.")
    return size


def _read_watermark(values: dict[str, Any]) -> Watermark | None:
    options = {
        option: values.pop(f"watermark_{option}")
        for option in ("position", "opacity", "width")
        if f"watermark_{option}" in values
    }
    image_id = values.pop("watermark", None)
    if image_id is not None:
        return Watermark(image_id, **options)
    if options:
        raise _invalid(f"watermark-{next(iter(options))} needs watermark, the id of the image to lay over.")
    return None


def _refuse_conflicts(asked: RenditionParams, given: Mapping[str, str]) -> None:
    sized = asked.width is not None or asked.height is not None
    boxed = asked.width is not None and asked.height is not None
    if asked.fit in {"cover", "fill", "pad"} and not boxed:
        raise _invalid(f"fit={asked.fit} needs a width and a height.")
    if asked.fit == "scale-down" and asked.enlarge:
        raise _invalid("fit=scale-down never enlarges; send fit=contain, or leave enlarge out.")
    if asked.gravity is not None and asked.fit not in {"cover", "pad"} and asked.crop is None:
        raise _invalid("gravity needs fit=cover, fit=pad or crop.")
    if asked.gravity == "smart" and asked.fit == "pad" and asked.crop is None:
        raise _invalid("gravity=smart needs fit=cover or crop.")
    if asked.dpr is not None and not sized:
        raise _invalid("dpr multiplies a width or a height; send one.")
    if asked.blur and asked.sharpen:
        raise _invalid("blur and sharpen undo each other; send one of them.")
    if asked.grayscale and "saturation" in given:
        raise _invalid("grayscale and saturation say the same; send one of them.")
    if asked.keep_location and asked.metadata != "keep":
        raise _invalid("keep-location needs metadata=keep.")


def _scaled(asked: RenditionParams, dpr: float) -> RenditionParams:
    """For a screen with `dpr` pixels where the page counts one."""
    width = None if asked.width is None else max(1, round(asked.width * dpr))
    height = None if asked.height is None else max(1, round(asked.height * dpr))
    if max(width or 0, height or 0) > MAX_SIDE:
        raise _invalid(f"dpr makes a side longer than {MAX_SIDE} pixels; send smaller ones.")
    return msgspec.structs.replace(asked, width=width, height=height, blur=asked.blur * dpr, dpr=None)


def _invalid(message: str) -> ServiceError:
    return ServiceError("invalid-parameter", message)


_Reader: TypeAlias = Callable[[str, str], Any]


def _flag(name: str, text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise _invalid(f"{name} must be true or false (or 1, 0, yes, no, on, off).")


def _whole(least: int, most: int) -> _Reader:
    def read(name: str, text: str) -> int:
        if re.fullmatch(r"[0-9]{1,6}", text) is None or not least <= int(text) <= most:
            raise _invalid(f"{name} must be a whole number from {least} to {most}.")
        return int(text)

    return read


def _number(least: float, most: float) -> _Reader:
    def read(name: str, text: str) -> float:
        if _NUMBER.fullmatch(text) is None or not least <= float(text) <= most:
            raise _invalid(f"{name} must be a number from {least:g} to {most:g}.")
        return float(text)

    return read


def _word(*words: str) -> _Reader:
    def read(name: str, text: str) -> str:
        if text not in words:
            raise _invalid(f"{name} must be one of {', '.join(words)}.")
        return text

    return read


def _box(name: str, text: str) -> tuple[int, int]:
    match = _BOX.fullmatch(text)
    if match is not None:
        width, height = int(match[1]), int(match[2])
        if 1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE:
            return width, height
    raise _invalid(f"{name} must be a width and a height like 300x200, each from 1 to {MAX_SIDE}.")


def _size(name: str, text: str) -> dict[str, Any]:
    if text.endswith("%"):
        return {"percent": _number(*_PERCENT)(f"{name} in percent", text[:-1])}
    if "x" not in text:
        raise _invalid(f"{name} must be a width and a height like 300x200, or a percentage like 50% (sent as 50%25).")
    width, height = _box(name, text)
    return {"width": width, "height": height}


def _gravity(name: str, text: str) -> Gravity:
    if text == "center":
        return "centre"
    if text in _GRAVITIES:
        return text  # type: ignore[return-value] # one of them
    x, comma, y = text.partition(",")
    if comma and _NUMBER.fullmatch(x) and _NUMBER.fullmatch(y) and float(x) <= 1 and float(y) <= 1:
        return float(x), float(y)
    raise _invalid(f"{name} must be one of {', '.join(_GRAVITIES)}, or a point like 0.5,0.25 (each from 0 to 1).")


def _colour(name: str, text: str) -> Rgba:
    if text in _COLOURS:
        return _COLOURS[text]
    match = _HEX.fullmatch(text)
    if match is None:
        raise _invalid(f"{name} must be a colour like fff, ffcc00 or ffcc0080, or one of {', '.join(_COLOURS)}.")
    digits = match[1] if len(match[1]) > 4 else "".join(digit * 2 for digit in match[1])
    red, green, blue, *alpha = bytes.fromhex(digits)
    return red, green, blue, alpha[0] if alpha else 255


def _trim(name: str, text: str) -> float | None:
    if text.lower() in _TRUE - {"1"}:
        return _DEFAULT_TRIM
    if text.lower() in _FALSE - {"0"}:
        return None
    if _NUMBER.fullmatch(text) is None or not 0 <= float(text) <= 255:
        raise _invalid(f"{name} must be true, or how far a colour may be from the corner's, a number from 0 to 255.")
    return float(text)


def _turn(name: str, text: str) -> int:
    if text not in {"0", "90", "180", "270"}:
        raise _invalid(f"{name} must be 0, 90, 180 or 270 (degrees, clockwise).")
    return int(text)


def _image(name: str, text: str) -> ImageId:
    if IMAGE_ID_PATTERN.fullmatch(text) is None:
        raise _invalid(f"{name} must be the id of an image of the same account.")
    return ImageId(text)


def _format(name: str, text: str) -> Format | None:
    if text == "auto":
        return None
    if text not in FORMATS_BY_EXTENSION:
        raise _invalid(f"{name} must be one of auto, {', '.join(get_args(Format))}.")
    return FORMATS_BY_EXTENSION[text]


def _checked_name(name: str, text: str) -> str:
    if PRESET_NAME.fullmatch(text) is None:
        raise _invalid(f"{name} must be the name of one of the account's presets.")
    return text


_DIRECTIONS = get_args(Direction)
_GRAVITIES = (*_DIRECTIONS, "smart")

_READERS: dict[str, _Reader] = {
    "preset": _checked_name,
    "width": _whole(1, MAX_SIDE),
    "height": _whole(1, MAX_SIDE),
    "size": _size,
    "dpr": _number(0.1, 8),
    "crop": _box,
    "fit": _word(*get_args(Fit)),
    "gravity": _gravity,
    "enlarge": _flag,
    "background": _colour,
    "trim": _trim,
    "rotate": _turn,
    "flip": _flag,
    "flop": _flag,
    "grayscale": _flag,
    "brightness": _number(0, 10),
    "contrast": _number(0, 10),
    "saturation": _number(0, 10),
    "blur": _number(0, 100),
    "sharpen": _number(0, 10),
    "ellipse": _flag,
    "watermark": _image,
    "watermark-position": lambda name, text: "centre" if text == "center" else _word(*_DIRECTIONS)(name, text),
    "watermark-opacity": _number(0, 1),
    "watermark-width": _number(0.01, 1),
    "frame": _whole(1, 10_000),
    "metadata": _word(*get_args(Metadata)),
    "keep-location": _flag,
    "format": _format,
    "quality": _whole(1, 100),
}

NAMES = tuple(_READERS)
