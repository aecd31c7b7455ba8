"""Mutates files. The seed, the format and a number determine each file, so that it can be reproduced."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Sequence

# Numbers at which signs, sizes and sums overflow.
_BOUNDARY_NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    16,
    0x7F,
    0x80,
    0xFE,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    2**24,
    2**31 - 1,
    2**31,
)
_MAX_UINT32 = 2**32 - 1
# Most fields that control how a file is read are near its start.
_HEAD_BYTES = 512
_MAX_BLOCK_BYTES = 256
_MAX_BYTES = 1 << 20

_MAX_STEPS = 8
# The share of PNGs whose checksums are repaired. Otherwise almost every mutation fails at the first chunk.
_REPAIRED_SHARE = 0.8
# The share of SVG mutations that are valid XML, because others are refused at the first invalid byte.
_SVG_INSERTION_SHARE = 0.8

_SVG_ELEMENTS = (
    b'<g id="a"><use href="#a"/></g>',
    b'<use href="#a" xmlns:xlink="http://www.w3.org/1999/xlink" xlink:href="#b"/>',
    b'<filter id="f"><feGaussianBlur stdDeviation="1e9"/><feMorphology radius="1e9"/></filter>',
    b'<filter id="f" x="-1e9" width="1e30"><feConvolveMatrix order="99" kernelMatrix="1 2 3"/><feTile/></filter>',
    b'<pattern id="p" width="0.001" height="0.001" patternUnits="userSpaceOnUse"><rect fill="url(#p)"/></pattern>',
    b'<mask id="m"><rect mask="url(#m)" width="9" height="9"/></mask>',
    b'<clipPath id="c" clip-path="url(#c)"><use href="#c"/></clipPath>',
    b'<text font-size="1e7" x="1e9 2 3">\xd8\xa7\xd7\x90&a;&#x202e;</text>',
    b"<style>* { fill: url(#p); filter: url(#f) } @import 'x';</style>",
    b"<![CDATA[ ]]>",
    b"<!-- -->",
    b"&a;&#65535;",
    b'<path d="M0 0A1e9 1e9 0 1 1 1 1z" marker-end="url(#m)"/>',
    b'<image href="data:image/png;base64,iVBORw0KGgo=" width="9" height="9"/>',
    b'<image href="data:image/svg+xml,%3Csvg%20xmlns=%22http://www.w3.org/2000/svg%22/%3E" width="9" height="9"/>',
    b"<foreignObject/><switch/><symbol/><marker/><animate/><set/><script/><a/><view/>",
)
_SVG_ATTRIBUTES = (
    b' filter="url(#f)"',
    b' fill="url(#p)"',
    b' mask="url(#m)"',
    b' clip-path="url(#c)"',
    b' viewBox="0 0 1e38 1e-38"',
    b' viewBox="NaN 0 -1 1e999"',
    b' width="1e9"',
    b' height="0"',
    b' width="-1em" height="1e-30%"',
    b' transform="scale(1e30) rotate(NaN) matrix(0 0 0 0 0 0)"',
    b' stroke="red" stroke-width="1e20" stroke-dasharray="1e-9"',
    b' preserveAspectRatio="xMidYMid slice" overflow="visible" style="font: 1e9px x; opacity: -1"',
)


def mutate(form: str, seeds: Sequence[bytes], number: int, seed: int) -> bytes:
    """Returns the mutated file of this number. Equal arguments return equal files on every machine."""
    rng = random.Random(f"{seed}/{form}/{number}")
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, rng.choice((1, 2, _MAX_STEPS)))):
        step = _insert_svg if form == "svg" and rng.random() < _SVG_INSERTION_SHARE else rng.choice(_STEPS)
        step(rng, data, seeds)
    del data[_MAX_BYTES:]
    if form == "png" and rng.random() < _REPAIRED_SHARE:
        repair_png_checksums(data)
    return bytes(data)


def repair_png_checksums(data: bytearray) -> None:
    """Corrects the checksums of all complete chunks in place."""
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            return
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4


def _position(rng: random.Random, data: bytearray) -> int:
    return rng.randrange(min(len(data), rng.choice((_HEAD_BYTES, _MAX_BYTES)))) if data else 0


def _range(rng: random.Random, data: bytearray) -> slice:
    start = _position(rng, data)
    return slice(start, start + rng.randint(1, rng.choice((4, 16, _MAX_BLOCK_BYTES))))


def _flip_bit(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[_position(rng, data)] ^= 1 << rng.randrange(8)


def _set_byte(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[_position(rng, data)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _set_integer(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    size, order = rng.choice((1, 2, 4, 8)), rng.choice(("big", "little"))
    _put(
        data,
        _position(rng, data),
        size,
        order,
        rng.choice((*_BOUNDARY_NUMBERS, _MAX_UINT32, len(data), rng.getrandbits(32))),
    )


def _edit_length(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    """Changes a number that is small enough to be a length, a count or an offset."""
    size, order = rng.choice((2, 4)), rng.choice(("big", "little"))
    for _attempt in range(20):
        at = _position(rng, data)
        value = int.from_bytes(data[at : at + size], "big" if order == "big" else "little")
        if 0 < value <= len(data):
            changed = value + rng.choice((-8, -1, 1, 8, value, len(data)))
            _put(data, at, size, order, rng.choice((0, changed, at, len(data), 2**31 - 1, _MAX_UINT32)))
            return


def _put(data: bytearray, at: int, size: int, order: str, value: int) -> None:
    if at + size <= len(data):
        data[at : at + size] = (value % 256**size).to_bytes(size, "big" if order == "big" else "little")


def _remove(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_range(rng, data)]


def _truncate(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _duplicate(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    block = bytes(data[_range(rng, data)])
    at = _position(rng, data)
    data[at:at] = block * rng.choice((1, 1, 2, 50))


def _move(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    block = data[_range(rng, data)]
    at = _position(rng, data)
    data[at : at + len(block)] = block


def _splice(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """Overwrites bytes with bytes of another seed, inserts them, or replaces the end of the file with them."""
    other = bytearray(rng.choice(seeds))
    match rng.randrange(3):
        case 0:
            block = other[_range(rng, other)]
            at = _position(rng, data)
            data[at : at + len(block)] = block
        case 1:
            at = _position(rng, data)
            data[at:at] = other[_range(rng, other)]
        case _:
            at = rng.randrange(min(len(data), len(other)) + 1)
            data[at:] = other[at:]


def _fill(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    block = _range(rng, data)
    size = len(data[block])
    data[block] = bytes([rng.choice((0, 0xFF))]) * size if rng.random() < 0.5 else rng.randbytes(size)


def _insert_svg(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    ends = [at for at, byte in enumerate(data) if byte == ord(">")]
    if not ends:
        return
    at = rng.choice(ends)
    if rng.random() < 0.5:
        data[at + 1 : at + 1] = rng.choice(_SVG_ELEMENTS)
    else:
        at -= data[at - 1] == ord("/")
        data[at:at] = rng.choice(_SVG_ATTRIBUTES)


_STEPS: tuple[Callable[[random.Random, bytearray, Sequence[bytes]], None], ...] = (
    _flip_bit,
    _flip_bit,
    _set_byte,
    _set_byte,
    _set_integer,
    _set_integer,
    _edit_length,
    _edit_length,
    _remove,
    _truncate,
    _duplicate,
    _move,
    _splice,
    _fill,
)
