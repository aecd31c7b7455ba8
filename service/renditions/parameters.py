"""The parameters of renditions. Parsing, error messages, the OpenAPI document and the table in docs/renditions.md all
come from the table here.

A new parameter needs a line in the table, a field of `RenditionParams` under the same name (with `_` for `-`), and the
step of worker.imaging.rendering that applies it; if it costs time, also a factor in service.renditions.costs. Conflicts
with other parameters are checked in service.renditions.parsing. `python -m service.renditions.parameters` prints the
rows of the table in docs/renditions.md.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import get_args

from service.accounts.presets import PRESET_NAME
from service.ids import IMAGE_ID_PATTERN
from service.renditions.formats import FORMATS_BY_EXTENSION, OUTPUT_FORMATS
from service.renditions.parameter_kinds import (
    ANGLE,
    BOX,
    BOX_OR_PERCENT,
    COLOUR,
    DIRECTION_ALIASES,
    DIRECTIONS,
    FLAG,
    GRAVITY,
    TOLERANCE,
    Kind,
    choice,
    integer,
    number,
    pattern,
)
from service.renditions.transformation import MAX_SIDE, Fit, Format, Metadata

# Parameters of a signed URL, not of a rendition: service.renditions.signatures reads them.
SIGNING = frozenset({"expires", "signature"})


@dataclass(frozen=True, slots=True)
class Parameter:
    """`default` is the value if a request omits the parameter. `default_note` describes a default that is not a single
    value. `section` is the heading in docs/renditions.md with details.
    """

    name: str
    kind: Kind
    description: str
    default: bool | float | str | None = None
    default_note: str = ""
    section: str = ""


_FORMAT = choice(
    ("auto", *get_args(Format)),
    aliases={extension: name for extension, name in FORMATS_BY_EXTENSION.items() if extension != name},
    values="`auto`, `jpeg` (or `jpg`), `png`, `webp`, `avif`, `gif`",
)
_QUALITIES = ", ".join(
    f"{name} {output.default_quality}" for name, output in OUTPUT_FORMATS.items() if not output.fixed_quality
)

_TABLE = (
    Parameter("width", integer(1, MAX_SIDE), "Width in pixels. Without `height`, the height follows."),
    Parameter("height", integer(1, MAX_SIDE), "Height in pixels. Without `width`, the width follows."),
    Parameter(
        "size",
        BOX_OR_PERCENT,
        "Width and height at once, or a percentage of the picture, 0.01 to 1000 (`%25` is `%` in a URL).",
    ),
    Parameter("dpr", number(0.1, 8), "Multiplies `width`, `height` and `blur`, for screens of high density.", 1),
    Parameter(
        "fit", choice(get_args(Fit)), "How the picture fits into `width` and `height`.", "contain", section="Fit"
    ),
    Parameter("enlarge", FLAG, "Allows the result to have more pixels than the picture.", default=False),
    Parameter("crop", BOX, "Cuts out a piece of the picture, in its own pixels, around `gravity` before the resize."),
    Parameter(
        "gravity",
        GRAVITY,
        "What `crop` and `fit=cover` keep, and where `fit=pad` puts the picture: a direction, `smart` (the part that "
        "draws the eye), or a point in fractions of width and height.",
        default_note="`centre`",
        section="Gravity",
    ),
    Parameter(
        "background",
        COLOUR,
        "Colour behind transparency, around a padded picture and in the corners of an ellipse. Two more digits are the "
        "opacity.",
        default_note="none",
    ),
    Parameter(
        "trim",
        TOLERANCE,
        "Cuts off edges of one colour: the upper left corner's. The number is how much a colour may differ from it; "
        "`true` means 10.",
        default_note="false",
    ),
    Parameter("rotate", ANGLE, "Rotates by these degrees, clockwise.", 0),
    Parameter("flip", FLAG, "Turns the picture upside down, like a mirror below it.", default=False),
    Parameter("flop", FLAG, "Swaps left and right.", default=False),
    Parameter("grayscale", FLAG, "Removes the colours.", default=False),
    Parameter("brightness", number(0, 10), "Multiplies the light of every colour.", 1),
    Parameter("contrast", number(0, 10), "Multiplies the distance of every colour from middle grey.", 1),
    Parameter("saturation", number(0, 10), "Multiplies the strength of colours; 0 is grey.", 1),
    Parameter("blur", number(0, 100), "Blurs; the number is the standard deviation in pixels of the result.", 0),
    Parameter("sharpen", number(0, 10), "Sharpens; the number is the standard deviation in pixels of the result.", 0),
    Parameter("ellipse", FLAG, "Cuts out the largest ellipse: a circle if the result is square.", default=False),
    Parameter(
        "watermark",
        pattern(IMAGE_ID_PATTERN, expected="the id of an image of the same account", values="an image's id"),
        "Lays another image of the same account over the result.",
        section="Watermark",
    ),
    Parameter(
        "watermark-position",
        choice(DIRECTIONS, aliases=DIRECTION_ALIASES, values="a direction of `gravity`"),
        "Where the watermark lies.",
        "southeast",
    ),
    Parameter("watermark-opacity", number(0, 1), "How opaque the watermark is.", 1),
    Parameter("watermark-width", number(0.01, 1), "Width of the watermark, as a fraction of the result's width.", 0.25),
    Parameter("frame", integer(1, 10_000), "Selects one frame of an animation, or one page of a TIFF."),
    Parameter(
        "format",
        _FORMAT,
        "`auto` is the best of AVIF and WebP that the header Accept names, or else a format like the image's own.",
        "auto",
        section="Format",
    ),
    Parameter(
        "quality",
        integer(1, 100),
        "Quality on the encoder's own scale. PNG and GIF ignore it.",
        default_note=_QUALITIES,
    ),
    Parameter("metadata", choice(get_args(Metadata)), "Which EXIF tags the result keeps.", "none", section="Metadata"),
    Parameter("keep-location", FLAG, "With `metadata=keep`, keeps where the picture was taken too.", default=False),
    Parameter(
        "preset",
        pattern(PRESET_NAME, expected="the name of one of the account's presets", values="a name"),
        "Stands for the parameters that the account has stored under this name.",
        section="Presets",
    ),
)
PARAMETERS = {parameter.name: parameter for parameter in _TABLE}
NAMES = tuple(PARAMETERS)


def markdown_rows() -> list[str]:
    """The rows of the table in docs/renditions.md."""
    return [
        f"| `{parameter.name}` | {parameter.kind.values} | {_describe_default(parameter)} | {_describe(parameter)} |"
        for parameter in _TABLE
    ]


def _describe(parameter: Parameter) -> str:
    section = parameter.section
    return f"{parameter.description} See [{section}](#{section.lower()})." if section else parameter.description


def _describe_default(parameter: Parameter) -> str:
    match parameter.default:
        case None:
            return parameter.default_note
        case bool():
            return str(parameter.default).lower()
        case str():
            return f"`{parameter.default}`"
        case _:
            return f"{parameter.default:g}"


if __name__ == "__main__":
    sys.stdout.write("\n".join(markdown_rows()) + "\n")
