"""Hostile pictures: small files that declare, or decompress to, very large pictures."""

from __future__ import annotations

import base64
import gzip
import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from tests.support import pictures


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(pictures.chunk(kind, body) for kind, body in chunks)


def _png_head(width: int, height: int, *, depth: int = 8, colour: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


def _png_with_text(kind: bytes) -> bytes:
    """Returns a PNG of one pixel with a text of 50 MB, compressed to 50 KB."""
    compressor = zlib.compressobj(9)
    zeros = bytes(1 << 20)
    text = b"".join(compressor.compress(zeros) for _ in range(50)) + compressor.flush()
    return png(_png_head(1, 1), (kind, b"a\0\0" + text), (b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b""))


def apng(*, declared: int, frames: int, width: int = 1, height: int = 1) -> bytes:
    pixels = zlib.compress(b"\0\0")
    control = struct.pack(">IIIIIHHBB", 0, 1, 1, 0, 0, 1, 100, 0, 0)
    return png(
        _png_head(width, height),
        (b"acTL", struct.pack(">II", declared, 0)),
        (b"IDAT", pixels),
        *[(b"fcTL", control), (b"fdAT", bytes(4) + pixels)] * frames,
        (b"IEND", b""),
    )


def gif(frames: int, *, width: int = 1, height: int = 1, screen: tuple[int, int] | None = None) -> bytes:
    out = io.BytesIO()
    Image.new("P", (width, height)).save(out, "GIF")
    one = out.getvalue()
    image = one[one.index(b"\x2c") : -1]
    head = b"GIF89a" + struct.pack("<HHBBB", *(screen or (width, height)), 0x80, 0, 0) + bytes(6)
    return head + image * frames + b";"


def tiff(directories: int, *, loop_to: int = 0) -> bytes:
    """Returns a chain of equal directories of one grey pixel.

    The last directory links to the one numbered `loop_to`, counted from 1, or to none if it is 0.
    """
    pixel = struct.pack("<H", len(ONE_PIXEL))
    pixel += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in ONE_PIXEL.items())
    size = len(pixel) + 4
    starts = [8 + size * number for number in range(directories)]
    next_starts = [*starts[1:], starts[loop_to - 1] if loop_to else 0]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(pixel + struct.pack("<I", start) for start in next_starts)


# Width, height, bits, no compression, black is 0, the offset of the pixel, one band, one row, one byte.
ONE_PIXEL = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: 1, 279: 1}


def tiff_of(*overrides: pictures.Entry, width: int = 1, height: int = 1, compression: int = 1) -> bytes:
    """Returns a TIFF of one grey pixel that declares this size, with tags that replace its own or are added."""
    own = ONE_PIXEL | {256: width, 257: height, 259: compression, 278: height}
    entries = [
        (tag, 4, 1, struct.pack("<I", value)) for tag, value in own.items() if tag not in {t for t, *_ in overrides}
    ]
    return pictures.exif_block(sorted([*entries, *overrides], key=lambda entry: entry[0]))


def jpeg_with(*segments: bytes) -> bytes:
    data = pictures.encode("JPEG")
    at = data.index(b"\xff\xdb")
    return data[:at] + b"".join(segments) + data[at:]


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload


def jpeg_sized(width: int, height: int) -> bytes:
    """Returns a JPEG whose header declares another size than it has."""
    data = bytearray(pictures.encode("JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_of_scans(scans: int, *, side: int) -> bytes:
    """Returns a progressive JPEG whose scans are empty, but each of which makes a decoder visit all blocks."""
    out = io.BytesIO()
    Image.new("L", (side, side), 90).save(out, "JPEG", progressive=True, optimize=False)
    data = out.getvalue()
    starts = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    last = bytearray(data[starts[-1] : -2])
    last[9] = 0  # not a refinement of the previous scan, because only one is allowed for each bit
    return data[:-2] + last * (scans - len(starts)) + b"\xff\xd9"


def webp_animation(canvas: tuple[int, int], frames: int) -> bytes:
    """Returns an animation of frames of one pixel on a large canvas."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)

    def size(value: int) -> bytes:
        return (value - 1).to_bytes(3, "little")

    pixel = pictures.encode("WEBP", Image.new("RGB", (1, 1)), lossless=True)[12:]
    frame = chunk(b"ANMF", bytes(6) + size(1) + size(1) + (100).to_bytes(3, "little") + b"\0" + pixel)
    head = chunk(b"VP8X", b"\2\0\0\0" + size(canvas[0]) + size(canvas[1])) + chunk(b"ANIM", bytes(6))
    body = b"WEBP" + head + frame * frames
    return b"RIFF" + struct.pack("<I", len(body)) + body


def heic_of_item_type(kind: bytes) -> bytes:
    """Returns the sample with another type of its EXIF item."""
    return pictures.HEIC.replace(b"\0\2\0\0Exif\0", b"\0\2\0\0" + kind + b"\0")


def heif_sized(data: bytes, width: int, height: int) -> bytes:
    """Returns the file with another size in its first `ispe`."""
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


def heic_grid(rows: int, columns: int, width: int, height: int, *, apart: bool = False) -> bytes:
    """Returns a grid of items of 64 x 64 that all have the content of the sample. If `apart`, each has its own copy."""
    sample = pictures.HEIC
    coded = sample[sample.index(b"mdat") + 4 :][:56]
    properties = sample[sample.index(b"hvcC") - 4 :][: 118 + 20]  # hvcC and ispe of the sample
    grid, cells = 1, range(2, 2 + rows * columns)
    layout = struct.pack(">BBBBII", 0, 1, rows - 1, columns - 1, width, height)
    count = struct.pack(">H", 1 + len(cells))

    def meta(coded_at: int, layout_at: int) -> bytes:
        step = len(coded) if apart else 0
        extents = [(cell, coded_at + step * number, len(coded)) for number, cell in enumerate(cells)]
        extents.append((grid, layout_at, len(layout)))
        kinds = [(grid, b"grid\0"), *((cell, b"hvc1\0") for cell in cells)]
        uses = [struct.pack(">HBB", grid, 1, 3), *(struct.pack(">HBBB", cell, 2, 0x81, 2) for cell in cells)]
        return _full_box(
            b"meta",
            _full_box(b"hdlr", bytes(4), b"pict", bytes(13)),
            _full_box(b"pitm", struct.pack(">H", grid)),
            _full_box(
                b"iloc", b"\x44\0", count, *(struct.pack(">HHHII", i, 0, 1, at, size) for i, at, size in extents)
            ),
            _full_box(
                b"iinf", count, *(_full_box(b"infe", struct.pack(">HH", i, 0), kind, version=2) for i, kind in kinds)
            ),
            _box(
                b"iprp",
                _box(b"ipco", properties, _full_box(b"ispe", struct.pack(">II", width, height))),
                _full_box(b"ipma", struct.pack(">I", len(uses)), *uses),
            ),
            _full_box(b"iref", _box(b"dimg", struct.pack(f">HH{len(cells)}H", grid, len(cells), *cells))),
        )

    head = _box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    start = len(head) + len(meta(0, 0)) + 8
    if apart:
        return head + meta(start + len(layout), start) + _box(b"mdat", layout, coded * len(cells))
    return head + meta(start, start + len(coded)) + _box(b"mdat", coded, layout)


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def _full_box(kind: bytes, *parts: bytes, version: int = 0) -> bytes:
    return _box(kind, bytes([version, 0, 0, 0]), *parts)


def heic_with_exif(block: bytes) -> bytes:
    """Returns the sample with another EXIF item, which is at the end of the file."""
    item = b"\0\0\0\6Exif\0\0" + block
    at = pictures.HEIC.index(b"\0\0\0\6Exif")
    data = bytearray(pictures.HEIC[:at] + item)
    extent = data.index(struct.pack(">IHII", at, 1, 0, len(pictures.HEIC) - at))  # base, one extent, offset, length
    data[extent + 10 : extent + 14] = struct.pack(">I", len(item))
    box = data.index(b"mdat") - 4
    data[box : box + 4] = struct.pack(">I", len(data) - box)
    return bytes(data)


def svg(body: str, attributes: str = 'width="96" height="64"', before: str = "") -> bytes:
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f"{before}<svg {names} {attributes}>{body}</svg>".encode()


def _solid_png(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("1", (side, side)).save(out, "PNG")
    return out.getvalue()


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def svg_with_image(uri: str, before: str = "") -> bytes:
    return svg(f'<image width="96" height="64" xlink:href="{uri}"/>', before=before)


def svgs_with_too_large_pictures() -> dict[str, bytes]:
    """Returns SVGs that contain a too large picture in different ways."""
    data = pictures.png_header(30_000, 30_000)
    uri = data_uri(data)
    plain, coded = svg_with_image(uri), base64.b64encode(data).decode()
    return {
        "PNG": plain,
        "JPEG": svg_with_image(data_uri(jpeg_sized(60_000, 60_000), "image/jpeg")),
        "GIF": svg_with_image(data_uri(gif(1, screen=(60_000, 60_000)), "image/gif")),
        "WebP": svg_with_image(data_uri(webp_animation((16_000, 16_000), 1), "image/webp")),
        "AVIF": svg_with_image(data_uri(heif_sized(pictures.encode("AVIF", speed=10), 90_000, 90_000), "image/avif")),
        "AVIF after a thumbnail": svg_with_image(
            data_uri(pictures.encode("AVIF", speed=10) + b"ispe" + struct.pack(">III", 0, 90_000, 90_000), "image/avif")
        ),
        "five together": svg(f'<image href="{data_uri(pictures.png_header(5_000, 5_000))}"/>' * 5),
        "another type": svg_with_image(data_uri(data, "text/plain")),
        "no type": svg_with_image(f"data:;base64,{coded}"),
        "capitals": svg_with_image(f"DATA:image/png;Base64,{coded}"),
        "white space": svg_with_image("&#10; da&#9;ta:image/png;base64, " + "&#10;".join(coded[:40]) + coded[40:]),
        "percent": svg_with_image("data:image/png," + "".join(f"%{byte:02x}" for byte in data)),
        "both": svg_with_image("data:image/png;base64," + "".join(f"%{ord(letter):02x}" for letter in coded)),
        "no padding": svg_with_image(uri.rstrip("=")),
        "a fragment": svg_with_image(uri + "#a"),
        "character references": svg_with_image("".join(f"&#{ord(letter)};" for letter in uri)),
        "an entity": svg_with_image("&a;", before=f'<!DOCTYPE svg [<!ENTITY a "{uri}">]>'),
        "an entity's element": svg(
            "&a;", before=f'<!DOCTYPE svg [<!ENTITY a \'<image width="9" height="9" href="{uri}"/>\'>]>'
        ),
        "a default": svg("<image/>", before=f'<!DOCTYPE svg [<!ATTLIST image href CDATA "{uri}">]>'),
        "an SVG in UTF-16": svg_with_image(data_uri(plain.decode().encode("utf-16"), "image/svg+xml")),
        "a filter": svg(f'<filter id="f"><feImage href="{uri}"/></filter><rect filter="url(#f)"/>'),
        "a pattern": svg(f'<pattern id="p"><image href="{uri}"/></pattern><rect fill="url(#p)"/>'),
        "an SVG": svg_with_image(data_uri(plain, "image/svg+xml")),
        "a packed SVG": svg_with_image(data_uri(gzip.compress(plain), "image/svg+xml")),
        "an SVG of 50 MB, packed": svg_with_image(data_uri(gzip.compress(svg(" " * 50_000_000)), "image/svg+xml")),
        "SVGs of 9 MB each, packed": svg(
            f'<image href="{data_uri(gzip.compress(bytes(9_000_000)), "image/svg+xml")}"/>' * 50
        ),
        "20,000 SVGs": svg('<image href="data:,&lt;svg/>"/>' * 20_000),
        "an inclusion": svg(
            f'<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="{data_uri(plain, "text/xml")}"/>'
        ),
        "SVGs in SVGs": _nested_svg(plain, 12),
        "an entity of 3 KB, often": svg(
            " " * 200_000 + '<image href="&a;"/>' * 5_000,
            before=f'<!DOCTYPE svg [<!ENTITY a "data:image/png,{"x" * 3_000}">]>',
        ),
    }


def _nested_svg(document: bytes, times: int) -> bytes:
    for _ in range(times):
        document = svg_with_image(data_uri(document, "image/svg+xml"))
    return document


# Each name starts with the format.
BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG of 50,000 x 50,000": lambda: pictures.png_header(50_000, 50_000),
    "PNG of 2^31 - 1 squared": lambda: pictures.png_header(2**31 - 1, 2**31 - 1),
    "PNG of zero width": lambda: pictures.png_header(0, 10),
    "PNG with 50 MB of zTXt": lambda: _png_with_text(b"zTXt"),
    "PNG with 50 MB of iCCP": lambda: _png_with_text(b"iCCP"),
    "PNG of 100,001 chunks": lambda: png(_png_head(1, 1), *[(b"tEXt", b"a\0b")] * 100_001, (b"IEND", b"")),
    "PNG of 10,000 x 10,000": lambda: _solid_png(10_000),
    "APNG of 2^31 frames": lambda: apng(declared=2**31, frames=1),
    "APNG of 20,000 frames": lambda: apng(declared=20_000, frames=20_000),
    "APNG of 100 frames of 10,000 x 10,000": lambda: apng(declared=100, frames=100, width=10_000, height=10_000),
    "GIF of 100,000 frames": lambda: gif(100_000),
    "GIF of 65,535 x 65,535": lambda: gif(1, screen=(65_535, 65_535)),
    "GIF of 10,000 frames of 100 x 100": lambda: gif(10_000, width=100, height=100),
    "TIFF whose page links to itself": lambda: tiff(1, loop_to=1),
    "TIFF whose last page links to its second": lambda: tiff(50, loop_to=2),
    "TIFF of 50,000 pages": lambda: tiff(50_000),
    "TIFF of 5,000 pages": lambda: tiff(5_000),
    "TIFF of 50,000 x 50,000": lambda: tiff_of(width=50_000, height=50_000),
    "TIFF of 2^32 - 1 squared": lambda: tiff_of(width=2**32 - 1, height=2**32 - 1),
    "TIFF of 16,646,153 x 5": lambda: tiff_of(width=16_646_153, height=5),
    "TIFF of 10,000 x 10,000, one strip": lambda: tiff_of(width=10_000, height=10_000, compression=5),
    "JPEG of 65,500 x 65,500": lambda: jpeg_sized(65_500, 65_500),
    "JPEG of 65,500 x 1,500": lambda: jpeg_sized(65_500, 1_500),
    "JPEG of 10,000 scans": lambda: jpeg_of_scans(10_000, side=64),
    "JPEG of 300,000 comments": lambda: jpeg_with(segment(0xFE, b"") * 300_000),
    "JPEG of 50,000 APP1": lambda: jpeg_with(segment(0xE1, b"Exif\0\0") * 50_000),
    "JPEG of 500 XMP of 64 KB": lambda: jpeg_with(
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + bytes(65_000)) * 500
    ),
    "JPEG of 255 segments of a profile": lambda: jpeg_with(
        *(segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 255]) + bytes(65_000)) for n in range(1, 256))
    ),
    "JPEG of 100,000 restart markers": lambda: (
        pictures.encode("JPEG")[:-2] + b"\xff\xd0\xff\xd1" * 50_000 + b"\xff\xd9"
    ),
    "WebP of 16,777,216 squared": lambda: webp_animation((1 << 24, 1 << 24), 1),
    "WebP of 16,383 squared": lambda: webp_animation((16_383, 16_383), 2),
    "WebP of 100 frames of 1,000 squared": lambda: webp_animation((1_000, 1_000), 100),
    "WebP of 50,000 frames": lambda: webp_animation((1, 1), 50_000),
    "WebP of 9,999 frames": lambda: webp_animation((100, 100), 9_999),
    "HEIC of 100,000 x 100,000": lambda: heif_sized(pictures.HEIC, 100_000, 100_000),
    "HEIC grid of 3,600 cells": lambda: heic_grid(60, 60, 3_840, 3_840),
    "HEIC grid of 961 cells": lambda: heic_grid(31, 31, 1_984, 1_984),
    "HEIC grid larger than its cells": lambda: heic_grid(2, 2, 10_000, 10_000),
    "HEIC grid of 2^32 - 1 squared": lambda: heic_grid(1, 1, 2**32 - 1, 2**32 - 1),
    "HEIC of a million nested entries": lambda: (
        _box(b"ftyp", b"heic", bytes(4), b"mif1heic") + _full_box(b"meta", b"infe" * 1_000_000)
    ),
    "AVIF of 100,000 x 100,000": lambda: heif_sized(pictures.encode("AVIF", speed=10), 100_000, 100_000),
    "SVG of 1e9 x 1e9": lambda: svg("", 'width="1e9" height="1e9"'),
    "SVG of 1e38 x 1e-38": lambda: svg("", 'width="1e38" height="1e-38"'),
    "SVG with a huge view box": lambda: svg("", 'viewBox="0 0 1e9 1e9"'),
    "SVG of a million by 1": lambda: svg("<rect width='9' height='9'/>", 'width="1000000" height="1"'),
    "SVG 100,000 deep": lambda: svg("<g>" * 100_000 + "</g>" * 100_000),
    "SVG 200 deep, half transparent": lambda: svg(
        "<g opacity='.5'>" * 200 + "<rect width='9' height='9'/>" + "</g>" * 200
    ),
    "SVG that uses itself": lambda: svg('<g id="a"><use href="#a"/></g>'),
    "SVG that uses itself twice": lambda: svg(
        '<g id="a"><use href="#b"/><use href="#b"/></g><g id="b"><use href="#a"/><use href="#a"/></g>'
    ),
    "SVG of a repeated large entity": lambda: svg(
        f"<text>{'&a;' * 300_000}</text>", before=f'<!DOCTYPE svg [<!ENTITY a "{"x" * 3_000}">]>'
    ),
    "SVG of entities in an attribute": lambda: svg(
        '<rect class="&a9;"/>',
        before='<!DOCTYPE svg [<!ENTITY a0 "lol">'
        + "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(9))
        + "]>",
    ),
    "SVG of a recursive entity": lambda: svg("<text>&a;</text>", before='<!DOCTYPE svg [<!ENTITY a "&a;">]>'),
    "SVG of 50,000 elements": lambda: svg("<rect/>" * 50_000),
    "SVG of tiny dashes": lambda: svg('<path d="M0 0H1e9" stroke="red" stroke-dasharray="1e-9"/>'),
    "SVG of a huge blur": lambda: svg(
        '<filter id="f"><feGaussianBlur stdDeviation="1e9"/></filter><rect width="96" height="64" filter="url(#f)"/>'
    ),
    "SVG of a huge filter region": lambda: svg(
        '<filter id="f" x="-1e9" y="-1e9" width="1e10" height="1e10"><feFlood/><feTile/></filter>'
        '<rect width="96" height="64" filter="url(#f)"/>'
    ),
    "SVG of huge turbulence": lambda: svg(
        '<filter id="f" x="-1e9" y="-1e9" width="1e10" height="1e10"><feTurbulence baseFrequency="9" numOctaves="9"/>'
        '</filter><rect width="96" height="64" filter="url(#f)"/>'
    ),
    "SVG of a pattern of tiny tiles": lambda: svg(
        '<pattern id="p" width="1e-6" height="1e-6" patternUnits="userSpaceOnUse"><path d="M0 0h9v9"/></pattern>'
        '<rect width="96" height="64" fill="url(#p)"/>'
    ),
    "SVG of a huge text": lambda: svg(f'<text font-size="1e7">{"x" * 100_000}</text>'),
}


# Pictures that take longer than any time limit.
ENDLESS: dict[str, Callable[[], bytes]] = {
    "SVG of doubling uses": lambda: svg(
        '<g id="a0"><rect width="1" height="1"/></g>'
        + "".join(f'<g id="a{n + 1}">' + f'<use xlink:href="#a{n}"/>' * 10 + "</g>" for n in range(9))
    ),
    "SVG of doubling masks": lambda: svg(
        "".join(
            f'<mask id="m{n}" mask="url(#m{n + 1})"><rect mask="url(#m{n + 1})" width="9" height="9"/></mask>'
            for n in range(40)
        )
        + '<rect width="96" height="64" mask="url(#m0)"/>'
    ),
    "SVG of a long path": lambda: svg(f'<path d="M0 0{"L9 9 8 7" * 300_000}"/>'),
}
