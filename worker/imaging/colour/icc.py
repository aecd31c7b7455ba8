"""ICC profiles, read (ICC.1:2022): their header and tags, as far as colours need them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from worker.imaging.colour.matrices import D50

_HEADER_BYTES = 128
# A profile of a camera has 10 to 20.
_MAX_TAGS = 1000
_MAX_VERSION = 4
_ILLUMINANT_TOLERANCE = 0.01
_NEEDED = frozenset({b"A2B0", b"A2B1", b"kTRC", b"rTRC", b"gTRC", b"bTRC", b"rXYZ", b"gXYZ", b"bXYZ", b"cicp"})


@dataclass(frozen=True, slots=True)
class Profile:
    """`space` and `pcs` are signatures of four bytes: RGB, GRAY, CMYK; XYZ or Lab."""

    version: bytes
    space: bytes
    pcs: bytes
    tags: dict[bytes, bytes]


def read_profile(data: bytes) -> Profile | None:
    """None if this is no profile, or one of a version that browsers do not read either (iccMAX)."""
    if len(data) < _HEADER_BYTES + 4 or data[36:40] != b"acsp" or data[8] > _MAX_VERSION:
        return None
    size, count = int.from_bytes(data[:4]), int.from_bytes(data[128:132])
    if size > len(data) or count > _MAX_TAGS or _HEADER_BYTES + 4 + 12 * count > size or not _is_against_d50(data):
        return None
    tags: dict[bytes, bytes] = {}
    for number in range(count):
        name, start, length = struct.unpack_from(">4sII", data, _HEADER_BYTES + 4 + 12 * number)
        if start + length > size:
            return None
        if name in _NEEDED:
            tags.setdefault(name, data[start : start + length])
    return Profile(data[8:12], data[16:20], data[20:24], tags)


def _is_against_d50(data: bytes) -> bool:
    illuminant = struct.unpack_from(">3i", data, 68)
    return all(abs(a / 65536 - b) < _ILLUMINANT_TOLERANCE for a, b in zip(illuminant, D50, strict=True))
