"""What a profile means for the pixels of a picture."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from worker.imaging.colour.cicp import HLG, PQ, PRIMARIES, profile_of_code_points
from worker.imaging.colour.curves import read_curve, srgb_encoded
from worker.imaging.colour.icc import SRGB, Profile, read_profile, write_profile
from worker.imaging.colour.matrices import D50, Matrix, apply, colorants, transpose

# libvips's name of the field with the profile.
ICC_PROFILE = "icc-profile-data"

# Profiles of cameras and editors have 0.5 to 4 KB. Those of printers have 0.5 to 3 MB, and are not cached.
_MAX_CACHED_BYTES = 64 << 10
_MAX_CACHED = 16

# Tolerances for sRGB: compact profiles of it round its curve to a level, and its colorants to 4 digits.
_CURVE_TOLERANCE = 1.5 / 255
_COLORANT_TOLERANCE = 0.003

_RGB_TAGS = (b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC")
_SRGB_COLORANTS = colorants(SRGB)


@dataclass(frozen=True, slots=True)
class Interpretation:
    """`space` is the profile's signature. `profile` has only the tags that lcms needs; None means sRGB or HDR.

    A neutral profile shows grey if red, green and blue are equal. `hdr` is the transfer, PQ or HLG, and `to_xyz`
    converts its light to XYZ.
    """

    space: bytes
    profile: bytes | None
    is_neutral: bool = False
    hdr: int | None = None
    to_xyz: Matrix = _SRGB_COLORANTS

    @property
    def is_srgb(self) -> bool:
        """Whether the stored values are those of sRGB, or of grey with its curve."""
        return self.profile is None and self.hdr is None


def interpret(profile: bytes) -> Interpretation | None:
    """Returns None if browsers ignore the profile: it is damaged, incomplete, or of a kind that they do not read."""
    return _interpret_cached(profile) if len(profile) <= _MAX_CACHED_BYTES else _interpret(profile)


def is_srgb(profile: bytes | None) -> bool:
    """Returns whether 8-bit pixels with this profile are sRGB, or grey of its curve. A profile that browsers ignore
    means that, too.
    """
    meaning = None if profile is None else interpret(profile)
    return meaning is None or meaning.is_srgb


def _interpret(data: bytes) -> Interpretation | None:
    profile = read_profile(data)
    if profile is None:
        return None
    if profile.space == b"GRAY":
        return _interpret_grey(profile)
    table = profile.tags.get(b"A2B0", profile.tags.get(b"A2B1"))
    if profile.space == b"CMYK":
        return _interpret_table(profile, table) if table else None
    if profile.space != b"RGB ":
        return None
    # A table has precedence over a matrix, and code points over both, but they never count alone.
    if table is None and (profile.pcs != b"XYZ " or any(tag not in profile.tags for tag in _RGB_TAGS)):
        return None
    return _interpret_code_points(profile) or (
        _interpret_table(profile, table) if table else _interpret_matrix(profile)
    )


_interpret_cached = lru_cache(_MAX_CACHED)(_interpret)


def _interpret_grey(profile: Profile) -> Interpretation | None:
    """Browsers read grey relative to XYZ only."""
    curve = profile.tags.get(b"kTRC", b"")
    if profile.pcs != b"XYZ " or read_curve(curve) is None:
        return None
    if _is_srgb_curve(curve):
        return Interpretation(b"GRAY", None, is_neutral=True)
    return Interpretation(b"GRAY", _write(profile, {b"kTRC": curve}), is_neutral=True)


def _interpret_table(profile: Profile, table: bytes) -> Interpretation:
    """Browsers prefer the perceptual table (A2B0). lcms uses A2B1 for the intent of `convert`, so both become A2B0."""
    return Interpretation(profile.space, _write(profile, {b"A2B0": table, b"A2B1": table}))


def _interpret_matrix(profile: Profile) -> Interpretation | None:
    columns = [_read_xyz(profile.tags[name]) for name in _RGB_TAGS[:3]]
    curves = [profile.tags[name] for name in _RGB_TAGS[3:]]
    if None in columns or any(read_curve(curve) is None for curve in curves):
        return None
    red, green, blue = (column or D50 for column in columns)
    to_xyz = transpose((red, green, blue))
    is_neutral = len(set(curves)) == 1 and _are_close((apply(to_xyz, (1, 1, 1)),), (D50,))
    if is_neutral and _are_close(to_xyz, _SRGB_COLORANTS) and _is_srgb_curve(curves[0]):
        return Interpretation(b"RGB ", None, is_neutral=True)
    return Interpretation(b"RGB ", _write(profile, {name: profile.tags[name] for name in _RGB_TAGS}), is_neutral)


def _interpret_code_points(profile: Profile) -> Interpretation | None:
    """Interprets the tag `cicp` (9.2.17): primaries, transfer, matrix and range."""
    points = profile.tags.get(b"cicp", b"")[8:12]
    if len(points) < 4 or points[0] not in PRIMARIES or points[2:] != b"\0\1":
        return None
    primaries, transfer = points[:2]
    if transfer in {PQ, HLG}:
        return Interpretation(b"RGB ", None, is_neutral=True, hdr=transfer, to_xyz=colorants(PRIMARIES[primaries]))
    replacement = profile_of_code_points(primaries, transfer)
    return None if replacement is None else _interpret(replacement)


def _write(profile: Profile, tags: dict[bytes, bytes]) -> bytes:
    return write_profile(profile.version, profile.space, profile.pcs, tags)


def _read_xyz(tag: bytes) -> tuple[float, float, float] | None:
    if tag[:4] != b"XYZ " or len(tag) < 20:
        return None
    x, y, z = (value / 65536 for value in struct.unpack_from(">3i", tag, 8))
    return x, y, z


def _is_srgb_curve(tag: bytes) -> bool:
    curve = read_curve(tag)
    return curve is not None and all(
        abs(srgb_encoded(max(0.0, curve(level / 255))) - level / 255) < _CURVE_TOLERANCE for level in range(256)
    )


def _are_close(left: tuple[tuple[float, ...], ...], right: tuple[tuple[float, ...], ...]) -> bool:
    return all(
        abs(a - b) < _COLORANT_TOLERANCE
        for row, other in zip(left, right, strict=True)
        for a, b in zip(row, other, strict=True)
    )
