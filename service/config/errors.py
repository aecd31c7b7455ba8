"""What is wrong with a value of a setting, in words for the operator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

_MAX_SHOWN = 40


def explain(error: ValidationError, fields: Mapping[str, FieldInfo]) -> str:
    """Returns a sentence on the first error: the variable, what it must be, and what it is."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    reason = first.get("ctx", {}).get("error")
    if reason is None:
        return f"DAGUERRE_{name.upper()}: {_describe(fields[name], first['input'])}"
    # A ValueError of the settings' own validators, whose message is for the operator and may repeat the value.
    value = str(first["input"])
    return f"DAGUERRE_{name.upper()}: {str(reason).replace(value, _cut(value)) if value else reason}"


def _describe(field: FieldInfo, value: object) -> str:
    """The only values that are shown are those of numbers and words, since an address may hold a password."""
    if get_origin(field.annotation) is Literal:
        *words, last = get_args(field.annotation)
        return f"must be {', '.join(words)} or {last}, not {_shorten(value)}"
    if field.annotation in {int, float}:
        return f"must be a {'whole ' if field.annotation is int else ''}number{_bounds(field)}, not {_shorten(value)}"
    if is_folder(field):
        return "must be the path of a folder"
    return "must be a text"


def is_folder(field: FieldInfo) -> bool:
    return Path in (field.annotation, *get_args(field.annotation))


def _bounds(field: FieldInfo) -> str:
    """As the field's metadata has them: ` from 1 to 1000`, ` above 0 and up to 9`."""
    bounds: dict[str, Any] = {}
    for item in field.metadata:
        bounds |= {name: getattr(item, name) for name in ("gt", "ge", "le") if getattr(item, name, None) is not None}
    least, above, most = bounds.get("ge"), bounds.get("gt"), bounds.get("le")
    if above is not None and field.annotation is int:
        least, above = above + 1, None
    if above is not None:
        return f" above {above:g}" + ("" if most is None else f" and up to {most:g}")
    if least is None:
        return "" if most is None else f" up to {_plain(most)}"
    return f" from {_plain(least)}" + (" on" if most is None else f" to {_plain(most)}")


def _plain(number: float) -> str:
    return str(int(number)) if math.isfinite(number) and number == int(number) else str(number)


def _shorten(value: object) -> str:
    return repr(_cut(str(value)))


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
