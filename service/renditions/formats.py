"""The formats of renditions, and content negotiation by the Accept header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from service.renditions.transformation import Format


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """`default_quality` is on the encoder's own scale, for about the same look in every format.

    A format with a `fixed_quality` has no other. `can_animate` says what libvips can write: no animated AVIF.
    """

    extensions: tuple[str, ...]
    default_quality: int
    fixed_quality: bool = False
    can_animate: bool = False


OUTPUT_FORMATS: Mapping[Format, OutputFormat] = {
    "jpeg": OutputFormat(("jpg", "jpeg"), 80),
    "png": OutputFormat(("png",), 100, fixed_quality=True),
    "webp": OutputFormat(("webp",), 78, can_animate=True),
    "avif": OutputFormat(("avif",), 52),
    "gif": OutputFormat(("gif",), 100, fixed_quality=True, can_animate=True),
}
FORMATS_BY_EXTENSION: Mapping[str, Format] = {
    extension: name for name, output in OUTPUT_FORMATS.items() for extension in output.extensions
}

# Formats that a client gets only if its header names them, the best first: `*/*` does not include them.
_NEGOTIATED: tuple[tuple[Format, str], ...] = (("avif", "image/avif"), ("webp", "image/webp"))


@lru_cache(1024)
def accepted_formats(accept: str) -> tuple[Format, ...]:
    """Returns the negotiated formats that an Accept header names, the best first. `q=0` excludes a format."""
    media_types = set()
    for part in accept.lower().split(","):
        media_type, *parameters = (word.strip() for word in part.split(";"))
        if not any(_is_zero_weight(parameter) for parameter in parameters):
            media_types.add(media_type)
    return tuple(name for name, media_type in _NEGOTIATED if media_type in media_types)


def _is_zero_weight(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name.strip() == "q" and value.strip("0. ") == "" and value.strip() != ""


def choose_format(source: str, accepted: tuple[Format, ...], *, transparent: bool, animated: bool) -> Format:
    """Returns the best format that the client accepts, or else the most similar format to the source's that every
    browser shows.
    """
    for name in accepted:
        if OUTPUT_FORMATS[name].can_animate or not animated:
            return name
    if animated:
        return "gif"
    return "png" if transparent or source in {"png", "gif", "svg"} else "jpeg"
