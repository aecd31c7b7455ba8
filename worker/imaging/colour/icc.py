"""Reads the parts of ICC profiles (ICC.1:2022) that colours need, and writes profiles.

Profiles are written for lcms with only the tags that it needs, also for pictures that define their colours in another
way.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from worker.imaging.colour.curves import MAX_GAMMA
from worker.imaging.colour.matrices import D50, Matrix, colorants, transpose

# x and y of red, green, blue and white.
SRGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)

_WRITTEN_VERSION = b"\x04\x40\0\0"
_HEADER_BYTES = 128
# A profile of a camera has 10 to 20.
_MAX_TAGS = 1000
_MAX_VERSION = 4
_ILLUMINANT_TOLERANCE = 0.01
_TAGS = frozenset({b"A2B0", b"A2B1", b"kTRC", b"rTRC", b"gTRC", b"bTRC", b"rXYZ", b"gXYZ", b"bXYZ", b"cicp"})


@dataclass(frozen=True, slots=True)
class Profile:
    """`space` and `pcs` are signatures of four bytes: RGB, GRAY, CMYK; XYZ or Lab."""

    version: bytes
    space: bytes
    pcs: bytes
    tags: dict[bytes, bytes]


def read_profile(data: bytes) -> Profile | None:
    """Returns None if this is not a profile, or has a version that browsers do not read either (iccMAX)."""
    if len(data) < _HEADER_BYTES + 4 or data[36:40] != b"acsp" or data[8] > _MAX_VERSION:
        return None
    size, count = int.from_bytes(data[:4]), int.from_bytes(data[128:132])
    if size > len(data) or count > _MAX_TAGS or _HEADER_BYTES + 4 + 12 * count > size or not _is_relative_to_d50(data):
        return None
    tags: dict[bytes, bytes] = {}
    for number in range(count):
        name, start, length = struct.unpack_from(">4sII", data, _HEADER_BYTES + 4 + 12 * number)
        if start + length > size:
            return None
        if name in _TAGS:
            tags.setdefault(name, data[start : start + length])
    return Profile(data[8:12], data[16:20], data[20:24], tags)


def _is_relative_to_d50(data: bytes) -> bool:
    illuminant = struct.unpack_from(">3i", data, 68)
    return all(abs(a / 65536 - b) < _ILLUMINANT_TOLERANCE for a, b in zip(illuminant, D50, strict=True))


def parametric(*values: float) -> bytes:
    """Returns a parametricCurveType of 1 value (gamma) or 5.

    The 5 are gamma, a, b, c and d: light is (a x + b) ^ gamma from d on, and c x below (10.18).
    """
    kind = {1: 0, 5: 3}[len(values)]
    return b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + _fixed(values)


def gamma_profile(gamma: float, chromaticities: Sequence[float] = SRGB) -> bytes:
    """Returns a profile whose light is this power of the stored values. Raises ValueError as `colorants` does."""
    return matrix_profile(colorants(chromaticities), parametric(min(MAX_GAMMA, max(1 / MAX_GAMMA, gamma))))


def matrix_profile(to_xyz: Matrix, curve: bytes, *, cicp: tuple[int, int] | None = None) -> bytes:
    """Returns a profile of RGB; `cicp` adds the code points of primaries and transfer (9.2.17)."""
    tags = {
        name + b"XYZ": b"XYZ \0\0\0\0" + _fixed(column)
        for name, column in zip((b"r", b"g", b"b"), transpose(to_xyz), strict=True)
    }
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    if cicp is not None:
        tags[b"cicp"] = b"cicp\0\0\0\0" + bytes([*cicp, 0, 1])
    return write_profile(_WRITTEN_VERSION, b"RGB ", b"XYZ ", tags)


def write_profile(version: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Returns a profile with these tags. Equal contents are written once."""
    at = 128 + 4 + 12 * len(tags)
    places: dict[bytes, int] = {}
    body = b""
    for value in tags.values():
        if value not in places:
            places[value] = at + len(body)
            body += value + bytes(-len(value) % 4)
    index = b"".join(name + struct.pack(">II", places[value], len(value)) for name, value in tags.items())
    head = struct.pack(">I4s4s4s4s4s12s4s", at + len(body), b"", version, b"mntr", space, pcs, b"", b"acsp")
    head += bytes(28) + _fixed(D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + index + body


def _fixed(values: Sequence[float]) -> bytes:
    """Returns the values as s15Fixed16Number (4.6)."""
    numbers = (min(0x7FFFFFFF, max(-0x80000000, round(value * 65536))) for value in values)
    return struct.pack(f">{len(values)}i", *numbers)
