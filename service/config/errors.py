"""Turns pydantic's errors of settings into sentences for the operator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from service.config.environment import PREFIX
from service.config.values import shorten


def explain(error: ValidationError, fields: Mapping[str, FieldInfo]) -> str:
    """Returns a sentence about the first error: the variable, what it must be, and its value."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    reason = first.get("ctx", {}).get("error")
    if reason is None:
        return f"{PREFIX}{name.upper()}: {_describe(fields[name], first['input'])}"
    # A ValueError of the settings' own validators. Its message is for the operator and may quote the value.
    value = str(first["input"])
    return f"{PREFIX}{name.upper()}: {str(reason).replace(value, shorten(value)) if value else reason}"


def _describe(field: FieldInfo, value: object) -> str:
    """Quotes the values of numbers and words only, because a URL may contain a password."""
    if get_origin(field.annotation) is Literal:
        *words, last = get_args(field.annotation)
        return f"must be {', '.join(words)} or {last}, not {shorten(str(value))!r}"
    if field.annotation in {int, float}:
        kind = "whole number" if field.annotation is int else "number"
        return f"must be a {kind}{_describe_bounds(field)}, not {shorten(str(value))!r}"
    if is_folder(field):
        return "must be the path of a folder"
    return "must be text"


def is_folder(field: FieldInfo) -> bool:
    return Path in (field.annotation, *get_args(field.annotation))


def _describe_bounds(field: FieldInfo) -> str:
    """Returns the bounds of the field's metadata, e.g. ` from 1 to 1000` or ` above 0 and up to 9`."""
    bounds: dict[str, Any] = {}
    for item in field.metadata:
        bounds |= {name: getattr(item, name) for name in ("gt", "ge", "le") if getattr(item, name, None) is not None}
    minimum, above, maximum = bounds.get("ge"), bounds.get("gt"), bounds.get("le")
    if above is not None and field.annotation is int:
        minimum, above = above + 1, None
    if above is not None:
        return f" above {above:g}" + ("" if maximum is None else f" and up to {maximum:g}")
    if minimum is None:
        return "" if maximum is None else f" up to {_format(maximum)}"
    return f" from {_format(minimum)}" + (" on" if maximum is None else f" to {_format(maximum)}")


def _format(number: float) -> str:
    return str(int(number)) if math.isfinite(number) and number == int(number) else str(number)
