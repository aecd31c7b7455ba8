"""Tone curves: from a stored value to light, both from 0 to 1."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

Curve = Callable[[float], float]

# Values of a parametricCurveType by its function type (ICC.1:2022, 10.18).
_PARAMETERS = {0: 1, 1: 3, 2: 4, 3: 5, 4: 7}
# The maximum exponent, and the minimum is its inverse: others are not useful for pictures. It fits into
# s15Fixed16Number.
MAX_GAMMA = 100.0


def srgb_encoded(light: float) -> float:
    """Returns the stored value of sRGB for light (IEC 61966-2-1)."""
    return 12.92 * light if light <= 0.0031308 else 1.055 * float(light ** (1 / 2.4)) - 0.055


def read_curve(tag: bytes) -> Curve | None:
    """Returns the curve of a curveType or parametricCurveType; None if the tag is neither."""
    if len(tag) < 12:
        return None
    if tag[:4] == b"curv":
        return _read_table(tag)
    return _read_parametric(tag) if tag[:4] == b"para" else None


def _read_table(tag: bytes) -> Curve | None:
    count = int.from_bytes(tag[8:12])
    if len(tag) < 12 + 2 * count:
        return None
    if count == 0:
        return lambda value: value
    if count == 1:
        exponent = int.from_bytes(tag[12:14]) / 256
        return lambda value: float(value**exponent)
    last = count - 1

    def look_up(value: float) -> float:
        place = min(int(value * last), last - 1)
        low, high = struct.unpack_from(">HH", tag, 12 + 2 * place)
        return float(low + (high - low) * (value * last - place)) / 65535

    return look_up


def _read_parametric(tag: bytes) -> Curve | None:
    """Returns the curve (a x + b) ^ gamma + e from d on, and c x + f below (10.18)."""
    kind = int.from_bytes(tag[8:10])
    count = _PARAMETERS.get(kind)
    if count is None or len(tag) < 12 + 4 * count:
        return None
    values = [value / 65536 for value in struct.unpack_from(f">{count}i", tag, 12)]
    gamma, a, b, c, d, e, f = _complete(kind, values)

    def compute(value: float) -> float:
        if value < d:
            return c * value + f
        return _power(max(0.0, a * value + b), max(0.0, gamma)) + e

    return compute


def _power(base: float, exponent: float) -> float:
    try:
        return float(base**exponent)
    except OverflowError:
        return math.inf


def _complete(kind: int, values: list[float]) -> list[float]:
    """Returns all seven parameters of a function that has fewer."""
    if kind == 0:
        return [*values, 1.0, 0.0, 0.0, -1.0, 0.0, 0.0]
    if kind in {1, 2}:
        gamma, a, b = values[:3]
        offset = values[3] if kind == 2 else 0.0
        return [gamma, a, b, 0.0, -b / a if a else 0.0, offset, offset]
    return [*values, 0.0, 0.0] if kind == 3 else values
