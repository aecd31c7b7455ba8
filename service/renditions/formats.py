"""Which format a rendition comes in, where the request leaves that to what its client takes."""

from __future__ import annotations

from functools import lru_cache

from service.renditions.transformation import Format

# What a client has to name to get it; the best first. `*/*` promises neither.
_MODERN: tuple[tuple[Format, str], ...] = (("avif", "image/avif"), ("webp", "image/webp"))


@lru_cache(1024)
def accepted_formats(accept: str) -> tuple[Format, ...]:
    """The modern formats that an Accept header names, the best first. One with `q=0` is refused by name."""
    taken = set()
    for part in accept.lower().split(","):
        media_type, *parameters = (word.strip() for word in part.split(";"))
        if not any(_is_zero(parameter) for parameter in parameters):
            taken.add(media_type)
    return tuple(form for form, media_type in _MODERN if media_type in taken)


def _is_zero(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name.strip() == "q" and value.strip("0. ") == "" and value.strip() != ""


def choose_format(source: str, taken: tuple[Format, ...], *, transparent: bool, animated: bool) -> Format:
    """The best that the client takes, else the source's kind, or what stands for it where browsers show none.

    There are no animated AVIFs here: libvips writes none.
    """
    for form in taken:
        if not (animated and form == "avif"):
            return form
    if animated:
        return "gif"
    if source in {"png", "gif"}:
        return "png"
    if source == "svg":
        return "png"
    return "png" if transparent else "jpeg"
