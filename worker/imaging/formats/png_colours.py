"""The colours of a PNG by its chunks, as a profile (PNG, third edition: 4.3 and 11.3.2).

cICP counts before iCCP, iCCP before sRGB, and sRGB before gAMA and cHRM. Choices that the specification leaves are
those of Chromium 156: cHRM counts beside gAMA only, gAMA without cHRM is sRGB if it is close to 1/2.2, and all but cICP
may follow PLTE. A chunk that is not well-formed is skipped.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable

from worker.imaging.colour import gamma_profile, profile_of_code_points, read_profile

# Of iCCP, packed and unpacked: profiles of printers have up to 3 MB.
_MAX_PROFILE_BYTES = 8_000_000
_MAX_KEYWORD_BYTES = 79
_LENGTHS = {b"cICP": 4, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32}
_RENDERING_INTENTS = 4
_SRGB_GAMMA = 1 / 2.2
_GAMMA_TOLERANCE = 0.05


def read_png_profile(chunks: Iterable[tuple[bytes, int, int]], read: Callable[[int, int], bytes]) -> bytes | None:
    """A profile that means what the chunks before IDAT say; None if they mean sRGB or nothing.

    `chunks` are kind, start and end; `read` returns up to `size` bytes (first parameter) from an offset (second).
    """
    bodies: dict[bytes, bytes] = {}
    palette = False
    for kind, start, end in chunks:
        if kind == b"IDAT":
            break
        palette = palette or kind == b"PLTE"
        if kind in bodies or (kind == b"cICP" and palette):
            continue
        if kind == b"iCCP" or end - start - 12 == _LENGTHS.get(kind, -1):
            body = _read_body(read, start, end)
            if body is not None:
                bodies[kind] = body
    if not bodies:
        return None
    return _of_code_points(bodies.get(b"cICP", b"")) or _of_older_chunks(bodies)


def _read_body(read: Callable[[int, int], bytes], start: int, end: int) -> bytes | None:
    """None if the chunk is damaged or too long."""
    if end - start > _MAX_PROFILE_BYTES:
        return None
    chunk = read(end - start, start)
    if len(chunk) < end - start or zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:]):
        return None
    return chunk[8:-4]


def _of_code_points(body: bytes) -> bytes | None:
    """Of RGB in full range; anything else is no PNG."""
    return profile_of_code_points(body[0], body[1]) if body[2:] == b"\0\1" else None


def _of_older_chunks(bodies: dict[bytes, bytes]) -> bytes | None:
    profile = _unpacked_profile(bodies.get(b"iCCP", b""))
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
    except ValueError:  # no colours from which others can be mixed
        return None


def _unpacked_profile(body: bytes) -> bytes | None:
    """None if there is no profile, or if it is damaged."""
    name, _, packed = body[: _MAX_KEYWORD_BYTES + 1].partition(b"\0")
    if not packed or packed[0] != 0:
        return None
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(body[len(name) + 2 :], _MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if unpacker.eof and read_profile(profile) is not None else None
