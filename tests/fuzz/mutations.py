"""Mutated files. A number and the seeds of its format determine each, so that any of them can be reproduced."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Sequence

# Numbers at which signs, sizes and sums overflow.
_INTERESTING = (0, 1, 2, 7, 8, 16, 0x7F, 0x80, 0xFE, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**24, 2**31 - 1, 2**31)
_LARGEST = 2**32 - 1
# Most fields that decide how a file is read are near its start.
_HEAD_BYTES = 512
_MAX_BLOCK_BYTES = 256
_MAX_BYTES = 1 << 20

_MAX_STEPS = 8
# The share of PNGs whose checksums are repaired: without it, hardly any mutation gets past the first chunk.
_MENDED_SHARE = 0.8
# An SVG is refused at its first byte that is no XML, so most of its mutations are such.
_WORDS_SHARE = 0.8

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
    """Returns the mutated file of this number: equal for equal arguments, on every machine."""
    rng = random.Random(f"{seed}/{form}/{number}")
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, rng.choice((1, 2, _MAX_STEPS)))):
        step = _insert_word if form == "svg" and rng.random() < _WORDS_SHARE else rng.choice(_STEPS)
        step(rng, data, seeds)
    del data[_MAX_BYTES:]
    if form == "png" and rng.random() < _MENDED_SHARE:
        mend_png_checksums(data)
    return bytes(data)


def mend_png_checksums(data: bytearray) -> None:
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            return
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4


def _place(rng: random.Random, data: bytearray) -> int:
    return rng.randrange(min(len(data), rng.choice((_HEAD_BYTES, _MAX_BYTES)))) if data else 0


def _block(rng: random.Random, data: bytearray) -> slice:
    start = _place(rng, data)
    return slice(start, start + rng.randint(1, rng.choice((4, 16, _MAX_BLOCK_BYTES))))


def _flip_bit(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[_place(rng, data)] ^= 1 << rng.randrange(8)


def _set_byte(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[_place(rng, data)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _set_integer(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    size, order = rng.choice((1, 2, 4, 8)), rng.choice(("big", "little"))
    _put(data, _place(rng, data), size, order, rng.choice((*_INTERESTING, _LARGEST, len(data), rng.getrandbits(32))))


def _edit_length(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    """Changes a number that may be a length, a count or an offset, since it is small."""
    size, order = rng.choice((2, 4)), rng.choice(("big", "little"))
    for _attempt in range(20):
        at = _place(rng, data)
        value = int.from_bytes(data[at : at + size], "big" if order == "big" else "little")
        if 0 < value <= len(data):
            nudged = value + rng.choice((-8, -1, 1, 8, value, len(data)))
            _put(data, at, size, order, rng.choice((0, nudged, at, len(data), 2**31 - 1, _LARGEST)))
            return


def _put(data: bytearray, at: int, size: int, order: str, value: int) -> None:
    if at + size <= len(data):
        data[at : at + size] = (value % 256**size).to_bytes(size, "big" if order == "big" else "little")


def _remove(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_block(rng, data)]


def _cut(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _duplicate(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    block = bytes(data[_block(rng, data)])
    at = _place(rng, data)
    data[at:at] = block * rng.choice((1, 1, 2, 50))


def _move(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    block = data[_block(rng, data)]
    at = _place(rng, data)
    data[at : at + len(block)] = block


def _splice(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """Overwrites, inserts or ends with a piece of another seed."""
    other = bytearray(rng.choice(seeds))
    match rng.randrange(3):
        case 0:
            block = other[_block(rng, other)]
            at = _place(rng, data)
            data[at : at + len(block)] = block
        case 1:
            at = _place(rng, data)
            data[at:at] = other[_block(rng, other)]
        case _:
            at = rng.randrange(min(len(data), len(other)) + 1)
            data[at:] = other[at:]


def _fill(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    block = _block(rng, data)
    size = len(data[block])
    data[block] = bytes([rng.choice((0, 0xFF))]) * size if rng.random() < 0.5 else rng.randbytes(size)


def _insert_word(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
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
    _cut,
    _duplicate,
    _move,
    _splice,
    _fill,
)
