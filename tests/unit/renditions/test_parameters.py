"""The table of parameters agrees with the struct that its values are written to."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from service.renditions.parameters import NAMES, PARAMETERS
from service.renditions.transformation import RenditionParams, Watermark

# Parameters that are written to other fields, or to none.
SPLIT = {"size": {"width", "height", "percent"}, "dpr": set[str](), "preset": set[str]()}


def defaults(struct: type[msgspec.Struct], prefix: str = "") -> dict[str, Any]:
    return {prefix + field.name: field.default for field in msgspec.structs.fields(struct)}


FIELDS = defaults(RenditionParams) | defaults(Watermark, "watermark_")


def test_every_parameter_has_a_field() -> None:
    fields = {name.replace("-", "_") for name in NAMES if name not in SPLIT}.union(*SPLIT.values())
    assert fields == set(FIELDS) - {"watermark_image_id"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SPLIT])
def test_default_is_the_one_of_the_field(name: str) -> None:
    parameter, default = PARAMETERS[name], FIELDS[name.replace("-", "_")]
    if name == "format":
        assert (parameter.default, default) == ("auto", None)  # negotiated
    elif parameter.default is None:
        assert default in {None, parameter.default_note.strip("`")}
    else:
        assert parameter.default == default
        assert parameter.kind.parse(str(parameter.default).lower()) == default


def test_every_parameter_is_documented() -> None:
    for parameter in PARAMETERS.values():
        assert parameter.kind.values
        assert parameter.kind.expected
        assert parameter.description.endswith(".")
