"""EXIF that lies refuses no picture, and is stored and shown."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import Client, Tenant
from tests.support import hostile_pictures as hostile
from tests.support import pictures
from tests.support.decoders import Child

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="decoders get their files over Unix sockets"),
]


def _lies() -> Iterator[tuple[str, list[pictures.Entry]]]:
    yield "NUL bytes", [pictures.ascii_entry(0x010F, b"a\0b\0\0"), pictures.ascii_entry(0x0110, b"\0\0\0\0\0\0")]
    yield "invalid UTF-8", [pictures.ascii_entry(0x010F, b"\xff\xfe\x80\xc0\xaf")]
    yield "lone surrogates", [pictures.ascii_entry(0x010F, b"\xed\xa0\x80\xed\xb0\x80")]
    yield "lone surrogates in UTF-16", [(0x9C9B, 1, 6, b"\0\xd8a\0\0\xdc")]
    yield "a NUL in UTF-16", [(0x9C9B, 1, 6, b"a\0\0\0b\0")]
    yield "64 KB of text", [pictures.ascii_entry(0x010E, b"x" * 64_000)]
    yield "control characters", [pictures.ascii_entry(0x010E, bytes(range(1, 32)) + b"\x7f\xc2\x80\xef\xbf\xbf")]
    yield "a count of 2^32 - 1", [(0x010F, 2, 2**32 - 1, b"\x08\0\0\0")]
    yield "a count that overflows", [(0x011A, 5, 0x20000001, b"\x08\0\0\0")]
    yield "an offset beyond the end", [(0x010F, 2, 100, b"\xff\xff\xff\xff")]
    yield "an unknown type", [(0x010F, 0, 1, b"abcd"), (0x0110, 0xFFFF, 1, b"abcd")]
    yield "no value", [(0x010F, 2, 0, b""), (0x0112, 3, 0, b"")]
    yield "a denominator of 0", [pictures.rationals(0x011A, (1, 0)), pictures.rationals(0x011B, (0, 0))]
    yield (
        "no numbers",
        [(0x011A, 11, 1, struct.pack("<f", math.nan)), (0x011B, 12, 1, struct.pack("<d", -math.inf))],
    )
    yield (
        "the largest numbers",
        [(0x011A, 12, 1, struct.pack("<d", 1.7e308)), pictures.rationals(0x011B, (2**32 - 1, 1))],
    )
    yield "an orientation of 65,535", [(0x0112, 3, 1, b"\xff\xff")]
    yield "an orientation in words", [(0x0112, 2, 4, b"six\0")]
    yield "a directory that is itself", [(0x8769, 4, 1, b"\x08\0\0\0"), (0x8825, 4, 1, b"\x08\0\0\0")]
    yield "directories beyond the end", [(0x8769, 4, 1, b"\xff\xff\xff\xff"), (0x8825, 4, 1, b"\xff\xff\xff\x7f")]
    yield "many equal tags", [pictures.ascii_entry(0x010F, b"first")] * 3_000
    yield "every tag as text", [pictures.ascii_entry(tag, b"x" * 900) for tag in range(0x0100 + 13, 0x0140)]
    yield "every type of a number", [(0x011A + n, kind, 1, bytes(8)[: 4 + n % 5]) for n, kind in enumerate(range(20))]


LIES = dict(_lies())
# 64 KB do not fit into the segment of a JPEG.
_FITS = [name for name, entries in LIES.items() if len(pictures.exif_block(entries)) < 65_000]


def _embed(form: str, entries: list[pictures.Entry]) -> bytes:
    block = pictures.exif_block(entries)
    match form:
        case "jpeg":
            return hostile.jpeg_with(hostile.segment(0xE1, b"Exif\0\0" + block))
        case "tiff":
            return hostile.tiff_of(*entries)
        case "heic":
            return hostile.heic_with_exif(block)
        case "avif":
            readable = pictures.exif_block([]).ljust(len(block), b"-")  # as Pillow wants to read it
            return pictures.encode("AVIF", exif=readable, speed=10).replace(readable, block)
        case "png":
            data = pictures.encode("PNG")
            at = data.index(b"IDAT") - 4
            return data[:at] + pictures.chunk(b"eXIf", block) + data[at:]
        case _:
            return pictures.encode("WEBP", exif=block)


# In a TIFF they are tags of the file, and libtiff reports what it refuses like missing pixels.
_UNREADABLE_IN_TIFF = {
    "no numbers",
    "every tag as text",
    "every type of a number",
}


@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "heic", "avif", "tiff"])
async def test_lying_metadata_does_not_refuse_a_picture(child: Child, form: str) -> None:
    for name in _FITS if form == "jpeg" else LIES:
        if form == "tiff" and name in _UNREADABLE_IN_TIFF:
            assert await child.outcome(_embed(form, LIES[name])) == "damaged-image", name
            continue
        found = await child.look(_embed(form, LIES[name]))
        text = json.dumps(found.exif, allow_nan=False, ensure_ascii=False)
        assert "\\u0000" not in text, name
        assert len(text.encode()) < 64 << 10, name  # counted in characters, of up to 4 bytes
        assert 1 <= found.orientation <= 8, name


@pytest.mark.usefixtures("worker")
async def test_lying_metadata_is_stored_and_shown(api: Client, tenant: Tenant) -> None:
    for name in _FITS:
        response = await api.post(
            "/v1/images",
            params={"with_exif": "1"},
            data=_embed("jpeg", LIES[name]),
            headers=tenant.headers | {"Content-Type": "image/jpeg"},
        )
        assert response.status == 200, name
        shown = (await response.json())["response"]
        again = await api.get(f"/v1/images/{shown['id']}", params={"with_exif": "1"}, headers=tenant.headers)
        assert (await again.json())["response"]["exif"] == shown["exif"], name
