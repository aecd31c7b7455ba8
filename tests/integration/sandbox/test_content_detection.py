"""Formats are detected by content: polyglots, and files that are no pictures."""

from __future__ import annotations

import gzip
import struct
import sys
import zipfile
from io import BytesIO

import pytest

from service.config.settings import Settings
from service.media_types import MIME_TYPES
from tests.conftest import Client, Tenant
from tests.support import hostile_pictures as hostile
from tests.support import pictures
from tests.support.decoders import Child
from tests.support.samples import stored_files

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="decoders get their files over Unix sockets"),
]


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


async def test_other_formats_reach_no_decoder(child: Child) -> None:
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
