"""Generates ICC profiles: matrices and curves, grey, and lookup tables of RGB and CMYK."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
# x and y of red, green, blue and white.
SRGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)
P3 = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3127, 0.3290)
ADOBE_RGB = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06, 0.3127, 0.3290)
BT2020 = (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290)
PROPHOTO = (0.734699, 0.265301, 0.159597, 0.840403, 0.036598, 0.000105, 0.345704, 0.358540)


@functools.cache
def colorants(primaries: Sequence[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Returns XYZ of red, green and blue as columns, adapted to D50 by Bradford's matrix."""
    xyz = [np.array([x / y, 1, (1 - x - y) / y]) for x, y in zip(primaries[::2], primaries[1::2], strict=True)]
    white = xyz[3]
    matrix = np.array(xyz[:3]).T
    matrix = matrix * np.linalg.solve(matrix, white)
    cone = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    scale = np.diag(cone @ np.array(D50) / (cone @ white))
    return np.asarray(np.linalg.inv(cone) @ scale @ cone @ matrix)


def _s15(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + _s15(*values)


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256)) + b"\0\0"


def parametric(*values: float) -> bytes:
    """Returns a parametric curve. Its type follows from the number of values: 1, 3, 4, 5 or 7 (ICC.1, 10.18)."""
    kind = {1: 0, 3: 1, 4: 2, 5: 3, 7: 4}[len(values)]
    return b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + _s15(*values)


SRGB_CURVE_TAG = parametric(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def table(curve: Callable[[float], float], size: int = 1024) -> bytes:
    points = [round(65535 * curve(i / (size - 1))) for i in range(size)]
    return b"curv\0\0\0\0" + struct.pack(f">I{size}H", size, *points)


def srgb_light(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else float(((value + 0.055) / 1.055) ** 2.4)


def dot_gain(value: float) -> float:
    """Returns the light of a value on a press with a dot gain of about 20 % in the middle."""
    ink = 1 - value
    return max(0.0, 1 - (ink + 0.8 * ink * (1 - ink)))


def profile(
    tags: dict[bytes, bytes],
    *,
    space: bytes = b"RGB ",
    pcs: bytes = b"XYZ ",
    kind: bytes = b"mntr",
    version: int = 2,
    name: str = "Test",
) -> bytes:
    text = name.encode()
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + b"\0" + bytes(78),
        b"wtpt": xyz(D50),
        **tags,
    }
    index, data, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        index += tag + struct.pack(">II", start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s12s4s", start + len(data), b"", version << 24, kind, space, pcs, b"", b"acsp")
    head += bytes(28) + _s15(*D50)
    return head.ljust(128, b"\0") + index + data


def rgb_profile(primaries: Sequence[float], curve: bytes, *, name: str = "Test", version: int = 2) -> bytes:
    red, green, blue = colorants(primaries).T
    return profile(
        {
            b"rXYZ": xyz(red), b"gXYZ": xyz(green), b"bXYZ": xyz(blue),
            b"rTRC": curve, b"gTRC": curve, b"bTRC": curve,
        },
        name=name,
        version=version,
    )  # fmt: skip


def grey_profile(curve: bytes, *, pcs: bytes = b"XYZ ") -> bytes:
    return profile({b"kTRC": curve}, space=b"GRAY", pcs=pcs)


def lab_of_xyz(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns Lab of XYZ relative to D50."""
    x, y, z = (
        ratio ** (1 / 3) if ratio > 216 / 24389 else (24389 / 27 * ratio + 16) / 116
        for ratio in (max(0.0, value / white) for value, white in zip(values, D50, strict=True))
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def lut(bands: int, grid: int, lab: Callable[..., tuple[float, float, float]]) -> bytes:
    """Returns a lut16Type from `bands` bands to Lab. `lab` is a function of values from 0 to 1."""
    nodes = b""
    for node in np.ndindex(*[grid] * bands):
        light, a, b = lab(*(value / (grid - 1) for value in node))
        words = (light * 652.8, (a + 128) * 256, (b + 128) * 256)
        nodes += struct.pack(">3H", *(min(65535, max(0, round(word))) for word in words))
    identity = struct.pack(">HH", 0, 65535)
    head = b"mft2\0\0\0\0" + bytes([bands, 3, grid, 0]) + _s15(1, 0, 0, 0, 1, 0, 0, 0, 1) + struct.pack(">HH", 2, 2)
    return head + identity * bands + nodes + identity * 3


def _ink(cyan: float, magenta: float, yellow: float, black: float) -> tuple[float, float, float]:
    """Returns Lab of subtractive, impure inks on paper."""
    light = np.ones(3)
    for amount, transmitted in zip(
        (cyan, magenta, yellow, black), ((0.1, 0.3, 0.5), (0.5, 0.1, 0.2), (0.8, 0.75, 0.1), (0.02, 0.02, 0.02)),
        strict=True,
    ):  # fmt: skip
        light = light * (1 - amount * (1 - np.array(transmitted)))
    paper = np.array(D50) * (colorants(SRGB) @ light / (colorants(SRGB) @ np.ones(3)))
    return lab_of_xyz([float(value) for value in paper])


def _swapped(red: float, green: float, blue: float) -> tuple[float, float, float]:
    light = colorants(SRGB) @ np.array([srgb_light(blue), srgb_light(green), srgb_light(red)])
    return lab_of_xyz([float(value) for value in light])


@functools.cache
def cmyk_profile() -> bytes:
    return profile({b"A2B0": lut(4, 9, _ink)}, space=b"CMYK", pcs=b"Lab ", kind=b"prtr")


@functools.cache
def lut_profile(*, version: int = 2) -> bytes:
    """Returns an RGB profile with a table that exchanges red and blue."""
    return profile({b"A2B0": lut(3, 17, _swapped)}, pcs=b"Lab ", version=version)


def lifted_profile(*, version: int = 2) -> bytes:
    """Returns a profile whose table maps black to that of a print, as perceptual tables of version 4 do."""
    return profile({b"A2B0": lut(3, 9, lambda red, *_: (3.1373 + 96.8627 * red, 0, 0))}, pcs=b"Lab ", version=version)


def two_tables_profile() -> bytes:
    """Returns a profile whose perceptual table uses only red, and whose colorimetric table uses only green."""
    tags = {
        b"A2B0": lut(3, 9, lambda red, *_: (100 * red, 0, 0)),
        b"A2B1": lut(3, 9, lambda _, green, __: (100 * green, 0, 0)),
    }
    return profile(tags, pcs=b"Lab ")


def with_cicp(primaries: int, transfer: int) -> bytes:
    """Returns a profile whose matrix is that of sRGB, and whose tag `cicp` has other code points."""
    red, green, blue = colorants(SRGB).T
    tags = {b"rXYZ": xyz(red), b"gXYZ": xyz(green), b"bXYZ": xyz(blue), b"cicp": cicp_tag(primaries, transfer)}
    return profile(tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), SRGB_CURVE_TAG), version=4)


def cicp_tag(primaries: int, transfer: int) -> bytes:
    return b"cicp\0\0\0\0" + bytes([primaries, transfer, 0, 1])
