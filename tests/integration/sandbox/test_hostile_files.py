"""Hostile files in real child processes: each is probed or refused, in bounded time and memory."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import os
import struct
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest

from service.config.settings import Settings
from service.images.probe import MIME_TYPES, Probe, Rejected
from tests.conftest import Client, Tenant
from tests.support import hostile_pictures as hostile
from tests.support import pictures
from tests.support.processes import peak_kb
from tests.support.samples import stored_files
from worker.sandbox.decoder import DecoderFailed
from worker.sandbox.pool import DecoderPool

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="looks into /proc")

_DEFAULTS = Settings.model_construct()
_MOST_KB = 256 << 10
SAMPLES = pictures.every_format()


class Worker:
    """One child of a worker, which probes bytes."""

    def __init__(self, pool: DecoderPool, path: Path) -> None:
        self.pool = pool
        self._path = path

    async def look(self, data: bytes) -> Probe:
        self._path.write_bytes(data)
        return await self.pool.probe(str(self._path))

    async def outcome(self, data: bytes) -> str:
        try:
            await self.look(data)
        except Rejected as refusal:
            return refusal.code
        return "accepted"

    @property
    def pid(self) -> int:
        pid = self.pool.decoders[0].process.pid
        assert pid is not None
        return pid


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[Worker]:
    pool = DecoderPool(1, max_pixels=_DEFAULTS.max_pixels, timeout_s=_DEFAULTS.probe_timeout_s)
    await pool.start()
    worker = Worker(pool, tmp_path / "picture")
    pid = worker.pid
    yield worker
    lost = worker.pid != pid
    await pool.close()
    assert not lost, "a child died"


# Bombs

OUTCOMES = {
    "accepted": {
        "APNG of 2^31 frames",
        "GIF of 10,000 frames of 100 x 100",
        "HEIC grid of 961 cells",
        "JPEG of 100,000 restart markers",
        "JPEG of 255 segments of a profile",
        "JPEG of 50,000 APP1",
        "JPEG of 500 XMP of 64 KB",
        "PNG of 10,000 x 10,000",
        "PNG with 50 MB of iCCP",
        "PNG with 50 MB of zTXt",
        "SVG 200 deep, half transparent",
        "SVG of 50,000 elements",
        "SVG of a huge blur",
        "SVG of a million by 1",
        "SVG of a huge filter region",
        "SVG of a huge text",
        "SVG of a pattern of tiny tiles",
        "SVG of huge turbulence",
        "SVG of tiny dashes",
        "SVG that uses itself twice",
        "SVG that uses itself",
        "SVG with a huge view box",  # it is 150 pixels wide
        "TIFF of 5,000 pages",
        "TIFF whose page links to itself",
        "TIFF whose last page links to its second",
        "WebP of 100 frames of 1,000 squared",
        "WebP of 9,999 frames",
    },
    "too-many-pixels": {
        "APNG of 100 frames of 10,000 x 10,000",
        "APNG of 20,000 frames",
        "AVIF of 100,000 x 100,000",
        "GIF of 100,000 frames",
        "GIF of 65,535 x 65,535",
        "JPEG of 65,500 x 65,500",
        "PNG of 2^31 - 1 squared",
        "PNG of 50,000 x 50,000",
        "SVG of 1e38 x 1e-38",
        "SVG of 1e9 x 1e9",
        "TIFF of 50,000 pages",
        "TIFF of 50,000 x 50,000",
        "TIFF of 16,646,153 x 5",
        "WebP of 16,383 squared",
        "WebP of 50,000 frames",
    },
    "probe-failed": {"JPEG of 10,000 scans"},
}


@pytest.mark.parametrize("form", sorted({name.split()[0] for name in hostile.BOMBS}))
async def test_bomb_is_refused_by_header_or_is_cheap(child: Worker, form: str) -> None:
    expected = {name: code for code, names in OUTCOMES.items() for name in names}
    assert set(expected) <= set(hostile.BOMBS)
    for name, make in hostile.BOMBS.items():
        if name.startswith(f"{form} "):
            assert await child.outcome(make()) == expected.get(name, "damaged-image"), name
    assert peak_kb(child.pid) < _MOST_KB


@pytest.mark.parametrize("name", hostile.ENDLESS)
async def test_endless_picture_is_stopped(tmp_path: Path, name: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(hostile.ENDLESS[name]())
    pool = DecoderPool(1, max_pixels=_DEFAULTS.max_pixels, timeout_s=0.5)
    await pool.start()
    began = time.monotonic()
    with pytest.raises(DecoderFailed):
        await pool.probe(str(path))
    assert time.monotonic() - began < 5
    await pool.close()


async def test_svg_side_beyond_libvips_is_refused(child: Worker) -> None:
    for side in ("100000001", "3e8", "1e9", "2100000000"):
        for size in (f'width="{side}" height="1"', f'width="5" height="{side}"'):
            assert await child.outcome(hostile.svg("", size)) == "too-many-pixels", size
    for size in ('width="1" height="1"', 'width="1" height="900"'):
        found = await child.look(hostile.svg("<rect width='9' height='9'/>", size))
        assert found.width == 1, size


async def test_svg_picture_counts_towards_the_limit(child: Worker) -> None:
    for name, data in hostile.svgs_with_too_large_pictures().items():
        began = time.monotonic()
        assert await child.outcome(data) == "too-many-pixels", name
        assert time.monotonic() - began < 3, name
    assert peak_kb(child.pid) < _MOST_KB


async def test_svg_with_a_photo_is_accepted(child: Worker) -> None:
    for form in ("PNG", "JPEG"):
        photo = hostile.svg_with_image(hostile.data_uri(pictures.encode(form), f"image/{form.lower()}"))
        assert (await child.look(photo)).mini_preview != (await child.look(hostile.svg(""))).mini_preview, form
        nested = hostile.svg_with_image(hostile.data_uri(photo, "image/svg+xml"))
        assert await child.outcome(nested) == "accepted", form
    assert await child.outcome(hostile.svg_with_image("data:image/png;base64,!!!")) == "accepted"


async def test_decoder_message_with_any_bytes(child: Worker) -> None:
    """libheif repeats the name of a property that it does not know."""
    turned = pictures.encode("AVIF", exif=pictures.exif_block([(0x0112, 3, 1, b"\6\0")]), speed=10)
    for _ in range(2):
        assert await child.outcome(turned.replace(b"irot", b"i\x80ot")) == "damaged-image"
    assert await child.outcome(turned) == "accepted"


async def test_heic_with_binary_item_type_is_damaged(child: Worker) -> None:
    for kind in (b"\xffxif", b"Exi\x80", b"\xff\xff\xff\xff"):
        assert await child.outcome(hostile.heic_of_item_type(kind)) == "damaged-image"
    assert (await child.look(hostile.heic_of_item_type(b"Othe"))).exif == {}


async def test_bytes_after_a_progressive_jpeg_are_no_scan(child: Worker) -> None:
    film = b"\xff\xda" * 1_000
    assert await child.outcome(pictures.encode("JPEG", progressive=True) + film) == "accepted"


# Truncated files


def _long_animation() -> bytes:
    frame = pictures.quarters(1_200, 900)
    return pictures.encode("WEBP", frame, save_all=True, append_images=[frame.rotate(n) for n in range(1, 16)])


@pytest.mark.parametrize("form", MIME_TYPES)
async def test_truncated_picture_is_refused(child: Worker, form: str) -> None:
    samples = {name: data for name, data in SAMPLES.items() if name.startswith(form)}
    if form == "webp":
        samples["webp, more frames than are decoded"] = _long_animation()
    for name, data in samples.items():
        last = len(data) - (5 if form == "tiff" else 1)  # a TIFF may end with the offset of no next page
        if form == "gif":
            last -= 1  # the end mark may be missing
        for at in sorted({last, last - 1, *(last * step // 25 for step in range(1, 25))}):
            outcome = await child.outcome(data[:at])
            assert outcome in {"damaged-image", "unsupported-image"}, f"{name}, cut to {at} of {len(data)}"


@pytest.mark.usefixtures("worker")
async def test_truncated_upload_is_not_stored(api: Client, tenant: Tenant, settings: Settings) -> None:
    for name, data in SAMPLES.items():
        response = await api.post(
            "/v1/images", data=data[: len(data) * 2 // 3], headers=tenant.headers | {"Content-Type": "image/jpeg"}
        )
        answer = await response.json()
        assert (response.status, answer["error"]["code"]) == (415, "damaged-image"), name
    account = await (await api.get("/v1/account", headers=tenant.headers)).json()
    assert account["response"]["num_images"] == account["response"]["storage"]["used"] == 0
    assert stored_files(settings) == []


# Formats are detected by content


def _zip() -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("evil.html", "<script>alert(1)</script>")
    return out.getvalue()


POLYGLOTS = {
    "gif": b"GIF89a" + pictures.encode("GIF")[6:] + b"/*" + b"*/=1;alert(1)//",
    "jpeg": pictures.encode("JPEG") + _zip(),
    "png": pictures.encode("PNG") + b"<?php system($_GET['x']); ?>",
    "webp": pictures.encode("WEBP") + b"%PDF-1.7\n%%EOF",
    "tiff": pictures.encode("TIFF") + _zip(),
    "avif": pictures.encode("AVIF", speed=10) + b'\0\0\0\x20free<?php system("id"); ?>\0',
    "heic": pictures.HEIC + b"\0\0\0\x20free<script>alert(1)</script>"[:-1],
    "svg": pictures.SVG + b"<!--\n%PDF-1.7\n1 0 obj\n%%EOF -->",
    "jpeg ": hostile.jpeg_with(hostile.segment(0xFE, b"%PDF-1.7\n1 0 obj\n<script>alert(1)</script>")),
}


@pytest.mark.usefixtures("worker")
async def test_polyglot_is_what_its_first_bytes_say(api: Client, tenant: Tenant) -> None:
    assert {form.strip() for form in POLYGLOTS} == set(MIME_TYPES)
    for form, data in POLYGLOTS.items():
        for claimed in ("image/svg+xml", "application/octet-stream", "image/x-php", MIME_TYPES["heic"]):
            response = await api.post(
                "/v1/images", params={"verbose": "1"}, data=data, headers=tenant.headers | {"Content-Type": claimed}
            )
            shown = (await response.json())["response"]
            assert (shown["format"], shown["mime"]) == (form.strip(), MIME_TYPES[form.strip()])


NO_PICTURES = {
    "HTML": b"<!DOCTYPE html><html><body><svg width='9' height='9'/></body></html>",
    "HTML that calls itself XML": b"<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'/>",
    "MVG": b"push graphic-context\nviewbox 0 0 640 480\nfill 'url(https://127.0.0.1/)'\npop graphic-context\n",
    "MSL": b"<?xml version='1.0'?><image><read filename='/etc/hostname'/><write filename='/tmp/x.png'/></image>",
    "PPM": b"P6 1 1 255\n\0\0\0",
    "PGM": b"P5 1 1 255\n\0",
    "PFM": b"PF\n1 1\n-1.0\n" + bytes(12),
    "XBM": b"#define x_width 1\n#define x_height 1\nstatic char x_bits[] = {0};\n",
    "XPM": b'/* XPM */\nstatic char *x[] = {"1 1 1 1", "a c #000000", "a"};\n',
    "MIFF": b"id=ImageMagick  version=1.0\nclass=DirectClass\ncolumns=1 rows=1\n:\x1a\0\0\0",
    "a label": b"label:@/etc/hostname",
    "Postscript": b"%!PS-Adobe-3.0\n(/etc/hostname) (r) file\nshowpage\n",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "EPS of DOS": b"\xc5\xd0\xd3\xc6" + struct.pack("<7I", 32, 30, 0, 0, 0, 0, 0xFFFF) + b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "PDF": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n%%EOF",
    "PDF that holds a JPEG": b"%PDF-1.7\n" + pictures.encode("JPEG"),
    "BMP": pictures.encode("BMP"),
    "ICO": pictures.encode("ICO"),
    "TGA": pictures.encode("TGA"),
    "PCX": pictures.encode("PCX"),
    "DDS": pictures.encode("DDS"),
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
    "JPEG XL": b"\xff\x0a" + bytes(40),
    "PSD": b"8BPS\0\1" + bytes(40),
    "OpenEXR": b"\x76\x2f\x31\x01\2\0\0\0" + bytes(40),
    "Radiance": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n\0\0\0\0",
    "FITS": b"SIMPLE  =                    T" + b" " * 80,
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(40),
    "compressed HTML": gzip.compress(b"<!DOCTYPE html><html><body><svg width='9' height='9'/></body></html>"),
    "a bomb of nothing": gzip.compress(bytes(50_000_000)),
    "HTML behind a long comment": b"<!--" + b"x" * 100_000 + b"--><html><svg/></html>",
    "a script": b"#!/bin/sh\nid\n",
    "a stylesheet": b"<?xml version='1.0'?><xsl:stylesheet xmlns:xsl='http://www.w3.org/1999/XSL/Transform'/>",
}


async def test_other_formats_reach_no_decoder(child: Worker) -> None:
    for name, data in NO_PICTURES.items():
        assert await child.outcome(data) == "unsupported-image", name


@pytest.mark.usefixtures("worker")
async def test_html_that_claims_to_be_an_image_is_refused(api: Client, tenant: Tenant, settings: Settings) -> None:
    for claimed in ("image/png", "image/svg+xml", "image/jpeg"):
        response = await api.post(
            "/v1/images", data=NO_PICTURES["HTML"], headers=tenant.headers | {"Content-Type": claimed}
        )
        assert (response.status, (await response.json())["error"]["code"]) == (415, "unsupported-image")
    assert stored_files(settings) == []


# An SVG fetches and reads nothing


class Canary:
    """A server and a file that must not be opened. A pipe without a writer blocks its reader, and refuses a
    writer as long as nobody does.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.port = 0
        self.connections = 0

    def count(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.close()

    def is_read(self) -> bool:
        try:
            os.close(os.open(self.file, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True


@pytest.fixture
async def canary(tmp_path: Path) -> AsyncIterator[Canary]:
    bird = Canary(tmp_path / "canary")
    os.mkfifo(bird.file)
    async with await asyncio.start_server(bird.count, "127.0.0.1", 0) as server:
        bird.port = server.sockets[0].getsockname()[1]
        yield bird


REFERENCES: dict[str, Callable[[str], bytes]] = {
    "image": lambda to: hostile.svg(f'<image href="{to}" width="96" height="64"/>'),
    "xlink image": lambda to: hostile.svg(f'<image xlink:href="{to}" width="96" height="64"/>'),
    "svg image": lambda to: hostile.svg(f'<image href="{to}.svg" width="96" height="64"/>'),
    "use": lambda to: hostile.svg(f'<use href="{to}#a"/><use xlink:href="{to}#a"/>'),
    "filter image": lambda to: hostile.svg(
        f'<filter id="f"><feImage href="{to}"/></filter><g filter="url(#f)"><path d="M0 0h1"/></g>'
    ),
    "paint": lambda to: hostile.svg(f'<rect width="96" height="64" fill="url({to}#a) none"/>'),
    "filter": lambda to: hostile.svg(f'<rect width="0" height="64" filter="url({to}#a)" mask="url({to}#b)"/>'),
    "gradient": lambda to: hostile.svg(f'<linearGradient id="g" href="{to}#a"/><path d="M0 0" fill="url(#g)"/>'),
    "stylesheet": lambda to: hostile.svg("", before=f'<?xml-stylesheet type="text/css" href="{to}"?>'),
    "import": lambda to: hostile.svg(f'<style>@import "{to}"; @import url({to});</style>'),
    "font": lambda to: hostile.svg(
        f'<style>@font-face {{ font-family: a; src: url("{to}") }}</style><text font-family="a">&#32;</text>'
    ),
    "background": lambda to: hostile.svg(f'<g style="background: url({to}); cursor: url({to})"/>'),
    "script": lambda to: hostile.svg(
        f'<script href="{to}"/><script>fetch("{to}")</script><g onload="fetch(\'{to}\')"/>'
    ),
    "foreign object": lambda to: hostile.svg(
        '<foreignObject width="96" height="64"><html xmlns="http://www.w3.org/1999/xhtml">'
        f'<img src="{to}"/><iframe src="{to}"/><object data="{to}"/></html></foreignObject>'
    ),
    "inclusion": lambda to: hostile.svg(
        f'<text><xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="{to}" parse="text"/></text>'
        f'<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="{to}"/>'
    ),
    "entity": lambda to: hostile.svg("<text>&a;</text>", before=f'<!DOCTYPE svg [<!ENTITY a SYSTEM "{to}">]>'),
    "parameter entity": lambda to: hostile.svg("", before=f'<!DOCTYPE svg [<!ENTITY % a SYSTEM "{to}"> %a;]>'),
    "document type": lambda to: hostile.svg("", before=f'<!DOCTYPE svg SYSTEM "{to}">'),
    "base": lambda to: hostile.svg(f'<g xml:base="{to}/"><image href="x" width="9" height="9"/></g>'),
    "nested": lambda to: hostile.svg(
        "<image width='96' height='64' href=\"data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'%3E"
        f"%3Cimage href='{to}' width='9' height='9'/%3E%3C/svg%3E\"/>"
    ),
}
# The parser refuses such a document, since its reference has no target.
UNREADABLE = {"entity", "parameter entity"}


async def test_svg_fetches_and_reads_nothing(child: Worker, canary: Canary) -> None:
    white = (await child.look(hostile.svg(""))).mini_preview
    links = (
        f"http://127.0.0.1:{canary.port}/canary",
        f"file://{canary.file}",
        str(canary.file),
        canary.file.name,
        f"///{canary.file}",
    )
    for name, make in REFERENCES.items():
        for link in links:
            async with asyncio.timeout(5):
                if await child.outcome(make(link)) == "accepted":
                    assert (await child.look(make(link))).mini_preview == white, (name, link)
                else:
                    assert name in UNREADABLE, link
            assert not canary.is_read(), (name, link)
    assert canary.connections == 0


async def test_canary_detects_a_reader(canary: Canary) -> None:
    assert not canary.is_read()
    reader = os.open(canary.file, os.O_RDONLY | os.O_NONBLOCK)
    assert canary.is_read()
    os.close(reader)
    _, writer = await asyncio.open_connection("127.0.0.1", canary.port)
    writer.close()
    await asyncio.sleep(0.05)
    assert canary.connections == 1


# Lying EXIF


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
async def test_lying_metadata_does_not_refuse_a_picture(child: Worker, form: str) -> None:
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
