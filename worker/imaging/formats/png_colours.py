"""The colours of a PNG by its chunks, as a profile (PNG, third edition: 4.3 and 11.3.2).

cICP has precedence over iCCP, iCCP over sRGB, and sRGB over gAMA and cHRM. Where the specification is open, this
follows Chromium 156: cHRM counts only together with gAMA, gAMA without cHRM is sRGB if it is close to 1/2.2, and all
but cICP may follow PLTE. A malformed chunk is skipped.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

from worker.file_headers import Read
from worker.imaging.colour import gamma_profile, profile_of_code_points, read_profile

# Bytes of iCCP, compressed or not: profiles of printers have up to 3 MB.
_MAX_PROFILE_BYTES = 8_000_000
_MAX_KEYWORD_BYTES = 79
_LENGTHS = {b"cICP": 4, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32}
_RENDERING_INTENTS = 4
_SRGB_GAMMA = 1 / 2.2
_GAMMA_TOLERANCE = 0.05


def read_png_profile(chunks: Iterable[tuple[bytes, int, int]], read: Read) -> bytes | None:
    """Returns a profile with the colours of the chunks before IDAT; None if they mean sRGB, or if there are none.

    `chunks` are kind, start and end.
    """
    bodies: dict[bytes, bytes] = {}
    has_palette = False
    for kind, start, end in chunks:
        if kind == b"IDAT":
            break
        has_palette = has_palette or kind == b"PLTE"
        if kind in bodies or (kind == b"cICP" and has_palette):
            continue
        if kind == b"iCCP" or end - start - 12 == _LENGTHS.get(kind, -1):
            body = _read_body(read, start, end)
            if body is not None:
                bodies[kind] = body
    if not bodies:
        return None
    return _profile_of_cicp(bodies.get(b"cICP", b"")) or _profile_of_older_chunks(bodies)


def _read_body(read: Read, start: int, end: int) -> bytes | None:
    """Returns None if the chunk is damaged or too long."""
    if end - start > _MAX_PROFILE_BYTES:
        return None
    chunk = read(end - start, start)
    if len(chunk) < end - start or zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:]):
        return None
    return chunk[8:-4]


def _profile_of_cicp(body: bytes) -> bytes | None:
    """Accepts RGB in full range only, which a PNG has (11.3.2.6)."""
    return profile_of_code_points(body[0], body[1]) if body[2:] == b"\0\1" else None


def _profile_of_older_chunks(bodies: dict[bytes, bytes]) -> bytes | None:
    profile = _decompress_profile(bodies.get(b"iCCP", b""))
    if profile is not None:
        return profile
    if b"gAMA" not in bodies or bodies.get(b"sRGB", b"\xff")[0] < _RENDERING_INTENTS:
        return None
    gamma = int.from_bytes(bodies[b"gAMA"]) / 100_000
    if gamma == 0:
        return None
    if b"cHRM" not in bodies:
        return None if abs(gamma / _SRGB_GAMMA - 1) <= _GAMMA_TOLERANCE else gamma_profile(1 / gamma)
    white_x, white_y, *primaries = (value / 100_000 for value in struct.unpack(">8I", bodies[b"cHRM"]))
    try:
        return gamma_profile(1 / gamma, (*primaries, white_x, white_y))
    except ValueError:  # the primaries span no colours
        return None


def _decompress_profile(body: bytes) -> bytes | None:
    """Returns None if there is no profile, or if it is damaged."""
    name, _, compressed = body[: _MAX_KEYWORD_BYTES + 1].partition(b"\0")
    if not compressed or compressed[0] != 0:
        return None
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(body[len(name) + 2 :], _MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if inflater.eof and read_profile(profile) is not None else None
