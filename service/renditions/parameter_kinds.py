"""The kinds of rendition parameters: how values are parsed and documented."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, get_args

from service.renditions.transformation import MAX_SIDE, Direction, Gravity, Rgba

JsonSchema: TypeAlias = dict[str, Any]

DIRECTIONS: tuple[str, ...] = get_args(Direction)
DIRECTION_ALIASES = {"center": "centre"}
_TRUE = frozenset({"true", "1", "yes", "on", ""})  # "" is a bare flag
_FALSE = frozenset({"false", "0", "no", "off"})
_COLOURS: dict[str, Rgba] = {"transparent": (0, 0, 0, 0), "white": (255, 255, 255, 255), "black": (0, 0, 0, 255)}
_HEX = re.compile(r"#?([0-9A-Fa-f]{3,4}|[0-9A-Fa-f]{6}|[0-9A-Fa-f]{8})")
_BOX = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_DECIMAL = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
_DEFAULT_TOLERANCE = 10.0


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of parameter. `expected` completes the error "width must be ...", and `values` is its cell in the table of
    the documentation.

    `parse` returns the value of a text, or raises ValueError, whose message is not shown.
    """

    expected: str
    values: str
    schema: JsonSchema
    parse: Callable[[str], Any]


def number(minimum: float, maximum: float) -> Kind:
    def parse(text: str) -> float:
        if _DECIMAL.fullmatch(text) is None or not minimum <= float(text) <= maximum:
            raise ValueError(text)
        return float(text)

    return Kind(
        expected=f"a number from {minimum:g} to {maximum:g}",
        values=f"{minimum:g} to {maximum:g}",
        schema={"type": "number", "minimum": minimum, "maximum": maximum},
        parse=parse,
    )


def integer(minimum: int, maximum: int) -> Kind:
    def parse(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,6}", text) is None or not minimum <= int(text) <= maximum:
            raise ValueError(text)
        return int(text)

    return Kind(
        expected=f"a whole number from {minimum} to {maximum}",
        values=f"{minimum} to {maximum}",
        schema={"type": "integer", "minimum": minimum, "maximum": maximum},
        parse=parse,
    )


def choice(words: Sequence[str], *, aliases: Mapping[str, str] | None = None, values: str = "") -> Kind:
    """One of `words`. `aliases` maps other spellings to them."""
    other_spellings = aliases or {}

    def parse(text: str) -> str:
        word = other_spellings.get(text, text)
        if word not in words:
            raise ValueError(text)
        return word

    return Kind(
        expected=f"one of {', '.join(words)}",
        values=values or list_words(words),
        schema={"type": "string", "enum": [*words, *other_spellings]},
        parse=parse,
    )


def pattern(regex: re.Pattern[str], *, expected: str, values: str) -> Kind:
    """A name or an id."""

    def parse(text: str) -> str:
        if regex.fullmatch(text) is None:
            raise ValueError(text)
        return text

    return Kind(expected, values, {"type": "string", "pattern": f"^{regex.pattern}$"}, parse)


def list_words(words: Sequence[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _parse_flag(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError(text)
    return text.lower() in _TRUE


def _parse_angle(text: str) -> int:
    if text not in {"0", "90", "180", "270"}:
        raise ValueError(text)
    return int(text)


def _parse_box(text: str) -> tuple[int, int]:
    match = _BOX.fullmatch(text)
    if match is None or not (1 <= int(match[1]) <= MAX_SIDE and 1 <= int(match[2]) <= MAX_SIDE):
        raise ValueError(text)
    return int(match[1]), int(match[2])


def _parse_box_or_percent(text: str) -> tuple[int, int] | float:
    return float(_PERCENT.parse(text[:-1])) if text.endswith("%") else _parse_box(text)


def _parse_gravity(text: str) -> Gravity:
    word = DIRECTION_ALIASES.get(text, text)
    if word in _GRAVITIES:
        return word  # type: ignore[return-value] # a Direction, or "smart"
    x, _, y = text.partition(",")
    return _FRACTION.parse(x), _FRACTION.parse(y)


def _parse_colour(text: str) -> Rgba:
    if text in _COLOURS:
        return _COLOURS[text]
    match = _HEX.fullmatch(text)
    if match is None:
        raise ValueError(text)
    digits = match[1] if len(match[1]) > 4 else "".join(digit * 2 for digit in match[1])
    red, green, blue, *alpha = bytes.fromhex(digits)
    return red, green, blue, alpha[0] if alpha else 255


def _parse_tolerance(text: str) -> float | None:
    """`0` and `1` are numbers here; the other words of a flag mean the default tolerance, and None."""
    if text.lower() in _TRUE - {"1"}:
        return _DEFAULT_TOLERANCE
    if text.lower() in _FALSE - {"0"}:
        return None
    return float(_TOLERANCE.parse(text))


_GRAVITIES = (*DIRECTIONS, "smart")
_PERCENT, _FRACTION, _TOLERANCE = number(0.01, 1000), number(0, 1), number(0, 255)

FLAG: Final = Kind(
    expected="true or false (or 1, 0, yes, no, on, off)",
    values="flag",
    schema={"type": "boolean"},
    parse=_parse_flag,
)
ANGLE: Final = Kind(
    expected="0, 90, 180 or 270 (degrees, clockwise)",
    values="0, 90, 180, 270",
    schema={"type": "integer", "enum": [0, 90, 180, 270]},
    parse=_parse_angle,
)
BOX: Final = Kind(
    expected=f"a width and a height like 300x200, each from 1 to {MAX_SIDE}",
    values="`600x400`",
    schema={"type": "string", "pattern": "^[0-9]{1,5}x[0-9]{1,5}$"},
    parse=_parse_box,
)
BOX_OR_PERCENT: Final = Kind(
    expected=f"{BOX.expected}, or a percentage from 0.01 to 1000 like 50% (sent as 50%25)",
    values="`300x200`, or `50%25`",
    schema={"type": "string", "pattern": f"^([0-9]{{1,5}}x[0-9]{{1,5}}|{_DECIMAL.pattern}%)$"},
    parse=_parse_box_or_percent,
)
GRAVITY: Final = Kind(
    expected=f"one of {', '.join(_GRAVITIES)}, or a point like 0.5,0.25 (each from 0 to 1)",
    values=f"{list_words(_GRAVITIES)}, or a point like `0.63,0.35`",
    schema={
        "type": "string",
        "anyOf": [
            {"enum": [*DIRECTIONS, *DIRECTION_ALIASES, "smart"]},
            {"pattern": f"^{_DECIMAL.pattern},{_DECIMAL.pattern}$"},
        ],
    },
    parse=_parse_gravity,
)
COLOUR: Final = Kind(
    expected=f"a colour like fff, ffcc00 or ffcc0080, or one of {', '.join(_COLOURS)}",
    values=f"`fff`, `ffcc00`, `ffcc0080`, {list_words([*_COLOURS])}",
    schema={"type": "string", "anyOf": [{"enum": [*_COLOURS]}, {"pattern": f"^{_HEX.pattern}$"}]},
    parse=_parse_colour,
)
TOLERANCE: Final = Kind(
    expected=f"true or false, or how much a colour may differ from the corner's, {_TOLERANCE.expected}",
    values=f"flag, or {_TOLERANCE.values}",
    schema={"anyOf": [FLAG.schema, _TOLERANCE.schema]},
    parse=_parse_tolerance,
)
