"""ICC profiles, written (ICC.1:2022): for lcms, and for pictures that say by other means what their colours are."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from worker.imaging.colour.curves import MAX_GAMMA
from worker.imaging.colour.matrices import D50, Matrix, colorants, transpose

SRGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)

_VERSION = b"\x04\x40\0\0"


def parametric(*values: float) -> bytes:
    """A parametricCurveType of 1 value (gamma) or 5: gamma, a, b, c, d of (a x + b) ^ gamma from d on, else c x."""
    kind = {1: 0, 5: 3}[len(values)]
    return b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + _fixed(values)


def gamma_profile(gamma: float, chromaticities: Sequence[float] = SRGB) -> bytes:
    """Of colours that are this power of the stored values. Raises ValueError as `colorants` does."""
    return matrix_profile(colorants(chromaticities), parametric(min(MAX_GAMMA, max(1 / MAX_GAMMA, gamma))))


def matrix_profile(to_xyz: Matrix, curve: bytes, *, cicp: tuple[int, int] | None = None) -> bytes:
    """Of RGB, with the code points of primaries and transfer beside if `cicp` gives them (9.2.17)."""
    tags = {
        name + b"XYZ": b"XYZ \0\0\0\0" + _fixed(column)
        for name, column in zip((b"r", b"g", b"b"), transpose(to_xyz), strict=True)
    }
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    if cicp is not None:
        tags[b"cicp"] = b"cicp\0\0\0\0" + bytes([*cicp, 0, 1])
    return write_profile(_VERSION, b"RGB ", b"XYZ ", tags)


def write_profile(version: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Equal contents are written once."""
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
    """As s15Fixed16Number."""
    numbers = (min(0x7FFFFFFF, max(-0x80000000, round(value * 65536))) for value in values)
    return struct.pack(f">{len(values)}i", *numbers)
