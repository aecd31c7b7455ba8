"""Parses the query of a URL to `RenditionParams`. Nothing is guessed: every error names its parameter."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from service.accounts.presets import PresetParameters
from service.errors import ServiceError
from service.renditions.formats import FORMATS_BY_EXTENSION
from service.renditions.parameters import PARAMETERS, SIGNING
from service.renditions.transformation import MAX_SIDE, RenditionParams, Watermark
from service.spelling import find_nearest, quote

_MAX_PARAMETERS = 64
_MAX_PRESET_CHARACTERS = 1000


def split_query(raw_query: str) -> list[tuple[str, str]]:
    """Returns names and values of the query as it was received. Raises `invalid-parameter` if there are too many."""
    try:
        return parse_qsl(raw_query.lstrip("?"), keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError as error:
        raise _invalid(f"At most {_MAX_PARAMETERS} parameters are allowed.") from error


def parse(
    query: Iterable[tuple[str, str]], name: str = "", presets: Mapping[str, str] | None = None
) -> RenditionParams | None:
    """Returns the parameters of a request, or None if it requests the original.

    `name` is the part of the path after the id: a known extension there is the same as `format`. `presets` are the
    account's. Raises `invalid-parameter` for a parameter that is unknown, given more than once, out of bounds or in
    conflict with another.
    """
    texts = _collect(query)
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    if extension in FORMATS_BY_EXTENSION:
        if "format" in texts:
            raise _invalid("format and an extension in the path are mutually exclusive; send one of them.")
        texts["format"] = extension
    if not texts:
        return None
    if (preset := texts.pop("preset", None)) is not None:
        if preset not in (presets or {}):
            raise _invalid(f"preset: the account has no preset {quote(preset)}.")
        texts = _collect(parse_qsl((presets or {})[preset], keep_blank_values=True)) | texts
    return _parse_texts(texts)


def check_preset(text: str) -> PresetParameters:
    """Raises `invalid-parameter` for parameters that a preset cannot have."""
    if len(text) > _MAX_PRESET_CHARACTERS:
        raise _invalid(f"A preset may have at most {_MAX_PRESET_CHARACTERS} characters.")
    query = parse_qsl(text, keep_blank_values=True)
    if any(name in SIGNING for name, _ in query):
        raise _invalid("signature and expires are parts of a signed URL; a preset cannot hold them.")
    texts = _collect(query)
    if not texts:
        raise _invalid("A preset needs at least one parameter, e.g. width=300&height=300&fit=cover.")
    if "preset" in texts:
        raise _invalid("preset: a preset cannot refer to another preset.")
    _parse_texts(texts)
    return PresetParameters(text)


def _collect(query: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns the texts of the rendition parameters by name."""
    query = list(query)
    names = {name for name, _ in query}
    if "expires" in names and "signature" not in names:
        raise _invalid("expires requires a signature; sign the URL, or leave expires out.")
    texts: dict[str, str] = {}
    for name, text in query:
        if name in SIGNING:
            continue
        if name not in PARAMETERS:
            nearest = find_nearest(name, PARAMETERS)
            hint = f"the parameters are {', '.join(PARAMETERS)}." if nearest is None else f"did you mean {nearest}?"
            raise _invalid(f"Unknown parameter {quote(name)}; {hint}")
        if name in texts:
            raise _invalid(f"{name} is given more than once; send it once.")
        texts[name] = text
    return texts


def _parse_texts(texts: Mapping[str, str]) -> RenditionParams:
    values = {name.replace("-", "_"): _parse_text(name, text) for name, text in texts.items()}
    if "size" in values:
        values |= _split_size(values.pop("size"), texts)
    if values.get("format") == "auto":
        del values["format"]
    dpr = values.pop("dpr", None)
    values["watermark"] = _take_watermark(values)
    params = RenditionParams(**values)
    _refuse_conflicts(params, texts)
    return params if dpr is None else _multiply(params, dpr)


def _parse_text(name: str, text: str) -> Any:
    kind = PARAMETERS[name].kind
    try:
        return kind.parse(text)
    except ValueError:
        raise _invalid(f"{name} must be {kind.expected}.") from None


def _split_size(size: tuple[int, int] | float, names: Collection[str]) -> dict[str, float]:
    for name in ("width", "height"):
        if name in names:
            raise _invalid(f"size and {name} are mutually exclusive; send one of them.")
    return {"width": size[0], "height": size[1]} if isinstance(size, tuple) else {"percent": size}


def _take_watermark(values: dict[str, Any]) -> Watermark | None:
    """Removes the watermark's options from `values`."""
    options = {
        option: values.pop(f"watermark_{option}")
        for option in ("position", "opacity", "width")
        if f"watermark_{option}" in values
    }
    image_id = values.get("watermark")
    if image_id is not None:
        return Watermark(image_id, **options)
    if options:
        raise _invalid(f"watermark-{next(iter(options))} requires watermark, the id of the image to lay over.")
    return None


def _refuse_conflicts(params: RenditionParams, names: Collection[str]) -> None:
    """Raises `invalid-parameter`. `names` are the parameters of the request, also those with a default value."""
    has_width, has_height = params.width is not None, params.height is not None
    if params.fit in {"cover", "fill", "pad"} and not (has_width and has_height):
        raise _invalid(f"fit={params.fit} requires a width and a height.")
    if params.fit == "scale-down" and params.enlarge:
        raise _invalid("fit=scale-down and enlarge are mutually exclusive; send fit=contain, or leave enlarge out.")
    if "gravity" in names and params.fit not in {"cover", "pad"} and params.crop is None:
        raise _invalid("gravity requires fit=cover, fit=pad or crop.")
    if params.gravity == "smart" and params.fit == "pad" and params.crop is None:
        raise _invalid("gravity=smart requires fit=cover or crop.")
    if "dpr" in names and not (has_width or has_height):
        raise _invalid("dpr requires a width or a height to multiply.")
    if params.blur and params.sharpen:
        raise _invalid("blur and sharpen are mutually exclusive; send one of them.")
    if params.grayscale and "saturation" in names:
        raise _invalid("grayscale and saturation are mutually exclusive; send one of them.")
    if params.keep_location and params.metadata != "keep":
        raise _invalid("keep-location requires metadata=keep.")


def _multiply(params: RenditionParams, dpr: float) -> RenditionParams:
    """Scales sizes for a screen that has `dpr` pixels for each pixel of the page."""
    width = None if params.width is None else max(1, round(params.width * dpr))
    height = None if params.height is None else max(1, round(params.height * dpr))
    if max(width or 0, height or 0) > MAX_SIDE:
        raise _invalid(f"dpr makes a side longer than {MAX_SIDE} pixels; send a smaller width or height.")
    return msgspec.structs.replace(params, width=width, height=height, blur=params.blur * dpr)


def _invalid(message: str) -> ServiceError:
    return ServiceError("invalid-parameter", message)
