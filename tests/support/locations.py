"""Pictures with a location in every known way, and what of it is in the bytes of a file."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from itertools import pairwise
from typing import Any

import pi_heif
import pyvips
from PIL import Image, ImageSequence

from tests.support import hostile_pictures, pictures
from worker import imaging
from worker.imaging.location_removal.regions import Patch

SECONDS = (281_234_567, 10_000_000)
TOWN = b"Hidden Vale"
MAKER_NOTE = bytes(range(7, 107))
XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
EXTENDED_XMP_HEAD = b"http://ns.adobe.com/xmp/extension/\0"
GIF_TRAILER = bytes([1, *range(255, -1, -1), 0])


class To(str):
    """A value that is the offset of the directory of this name."""

    __slots__ = ()


Directory = list[tuple[int, int, int, bytes | To]]


def tiff_block(directories: dict[str, Directory], chain: tuple[str, ...] = (), order: str = "<") -> bytes:
    """Returns a block that starts with the first directory; those of the chain follow each other."""
    offsets, at = {}, 8
    for name, entries in directories.items():
        offsets[name] = at
        at += 6 + 12 * len(entries) + sum(len(value) for *_, value in entries if not fits(value))
    following = dict(pairwise(chain))
    body = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8)
    for name, entries in directories.items():
        end, outside = offsets[name] + 6 + 12 * len(entries), b""
        body += struct.pack(order + "H", len(entries))
        for tag, kind, count, value in entries:
            if isinstance(value, To):
                field = struct.pack(order + "I", offsets[value])
            elif fits(value):
                field = value.ljust(4, b"\0")
            else:
                field = struct.pack(order + "I", end + len(outside))
                outside += value
            body += struct.pack(order + "HHI", tag, kind, count) + field
        body += struct.pack(order + "I", offsets[following[name]] if name in following else 0) + outside
    return body


def fits(value: bytes | To) -> bool:
    return isinstance(value, To) or len(value) <= 4


def gps(order: str) -> Directory:
    degrees = pictures.rationals(2, (47, 1), (33, 1), SECONDS, order=order)
    return [
        (1, 2, 2, b"N\0"),
        degrees,
        (3, 2, 2, b"E\0"),
        (4, *degrees[1:]),
        (0x1B, 7, 8 + len(TOWN), b"ASCII\0\0\0" + TOWN),
        (0x1D, 2, 11, b"2024:05:06\0"),
    ]


def exif_block(order: str = "<") -> bytes:
    """Returns a block like that of a camera, with GPS in its place, for the thumbnail, and in a wrong place."""
    short = struct.pack(order + "H", 6)
    return tiff_block(
        {
            "image": [
                (0x010F, 2, 6, b"Canon\0"),
                (0x0112, 3, 1, short),
                (0x8769, 4, 1, To("photo")),
                (0x8825, 4, 1, To("gps")),
                (0x9C9B, 1, 10, "Lake".encode("utf-16-le") + b"\0\0"),
            ],
            "photo": [
                (0x8825, 4, 1, To("gps of the photo")),
                (0x9003, 2, 20, b"2024:05:06 07:08:09\0"),
                (0x927C, 7, len(MAKER_NOTE), MAKER_NOTE),
                (0xA005, 4, 1, To("interop")),
            ],
            "interop": [(1, 2, 4, b"R98\0")],
            "gps": gps(order),
            "thumbnail": [(0x0103, 3, 1, short), (0x8825, 4, 1, To("gps of the thumbnail"))],
            "gps of the photo": gps(order),
            "gps of the thumbnail": gps(order),
        },
        ("image", "thumbnail"),
        order,
    )


def xmp(name: str = "photoshop:City", text: bytes = TOWN) -> bytes:
    return (
        b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4">'
        b'<%b xmlns:%b="urn:it">%b</%b></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
        % (name.encode(), name.partition(":")[0].encode(), text, name.encode())
    )


def iim(*values: tuple[int, bytes]) -> bytes:
    return b"".join(b"\x1c\2" + bytes([number]) + struct.pack(">H", len(value)) + value for number, value in values)


IIM = iim((5, b"A lake"), (26, TOWN), (27, TOWN), (90, TOWN), (92, TOWN), (95, TOWN), (100, b"XQZ"), (101, TOWN))


def resource_block(kind: int, value: bytes) -> bytes:
    return b"8BIM" + struct.pack(">HHI", kind, 0, len(value)) + value + bytes(len(value) % 2)


RESOURCES = (
    resource_block(0x03ED, bytes(16))
    + resource_block(0x0425, hashlib.md5(IIM).digest())
    + resource_block(0x0404, IIM)
    + resource_block(0x0422, exif_block(">"))
    + resource_block(0x0424, xmp())
    + resource_block(0x03EE, b"the last")
)


def jpeg() -> bytes:
    long = xmp("exif:GPSLatitude", b"47,33.4687N " + TOWN + b" " * 300)
    guid = hashlib.md5(long).hexdigest().encode()
    more = [
        hostile_pictures.segment(
            0xE1, EXTENDED_XMP_HEAD + guid + struct.pack(">II", len(long), at) + long[at : at + 150]
        )
        for at in range(0, len(long), 150)
    ]
    return hostile_pictures.jpeg_with(
        hostile_pictures.segment(0xE1, b"Exif\0\0" + exif_block()),
        hostile_pictures.segment(0xE1, XMP_HEAD + xmp("xmpNote:HasExtendedXMP", guid)),
        *reversed(more),
        hostile_pictures.segment(0xE1, b"Exif\0\0" + exif_block(">")),
        hostile_pictures.segment(0xED, b"Photoshop 3.0\0" + RESOURCES[:300]),
        hostile_pictures.segment(0xED, b"Photoshop 3.0\0" + RESOURCES[300:]),
    )


def with_chunks(data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    return data[:33] + b"".join(pictures.chunk(kind, body) for kind, body in chunks) + data[33:]


def profile(block: bytes, name: bytes = b"exif") -> bytes:
    lines = block.hex().encode()
    digits = b"\n".join(lines[at : at + 72] for at in range(0, len(lines), 72))
    return b"\n%b\n%8d\n%b\n" % (name, len(block), digits)


def text_chunks() -> dict[str, tuple[bytes, bytes]]:
    """Returns texts of a PNG with a location, in every notation."""
    return {
        "XMP": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp()),
        "XMP, packed": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp())),
        "EXIF": (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile(b"Exif\0\0" + exif_block()))),
        "EXIF, not packed": (b"tEXt", b"Raw profile type APP1\0" + profile(b"Exif\0\0" + exif_block())),
        "EXIF, as iTXt": (b"iTXt", b"Raw profile type APP1\0\1\0\0\0" + zlib.compress(profile(exif_block()))),
        "XMP as a profile": (b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(profile(xmp(), b"xmp"))),
        "IPTC": (b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(profile(RESOURCES, b"iptc"))),
        "IPTC alone": (b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(profile(IIM, b"iptc"))),
        "a property": (b"tEXt", b"exif:GPSAreaInformation\0" + TOWN),
        "a short property": (b"tEXt", b"GPS\0abc"),
        "a profile that is none": (b"tEXt", b"Raw profile type exif\0" + TOWN),
    }


def png() -> bytes:
    return with_chunks(pictures.encode("PNG"), (b"eXIf", exif_block()), *text_chunks().values())


def with_gif_xmp(packet: bytes, *, as_blocks: bool = False) -> bytes:
    data = pictures.animate("GIF")
    at = data.index(b"\x2c")
    at = data.index(b"\x21\xf9") if b"\x21\xf9" in data[:at] else at
    blocks = b"".join(bytes([len(packet[i : i + 200])]) + packet[i : i + 200] for i in range(0, len(packet), 200))
    return data[:at] + b"\x21\xff\x0bXMP DataXMP" + (blocks + b"\0" if as_blocks else packet + GIF_TRAILER) + data[at:]


def tiff(order: str = "<") -> bytes:
    """Returns a page of one pixel with all metadata, and another page."""
    own: Directory = [(tag, 4, 1, struct.pack(order + "I", value)) for tag, value in hostile_pictures.ONE_PIXEL.items()]
    extra: Directory = [
        (0x010F, 2, 6, b"Canon\0"),
        (0x0112, 3, 1, struct.pack(order + "H", 6)),
        (700, 1, len(xmp()), xmp()),
        (0x830E, 12, 3, struct.pack(order + "3d", 0.5, 0.5, 0)),
        (0x83BB, 7, len(IIM), IIM),
        (0x8482, 12, 6, struct.pack(order + "6d", 0, 0, 0, 8.123456, 47.123456, 0)),
        (0x8649, 7, len(RESOURCES), RESOURCES),
        (0x8769, 4, 1, To("photo")),
        (0x87B1, 2, 12, TOWN + b"\0"),
        (0x8825, 4, 1, To("gps")),
    ]
    pages: dict[str, Directory] = {
        "page": sorted([*own, *extra], key=lambda entry: entry[0]),
        "photo": [(0x9003, 2, 20, b"2024:05:06 07:08:09\0"), (0x927C, 7, len(MAKER_NOTE), MAKER_NOTE)],
        "gps": gps(order),
        "next": [*own, (0x014A, 4, 2, struct.pack(order + "II", 0, 0)), (0x8825, 4, 1, To("gps of the next"))],
        "gps of the next": gps(order),
    }
    return tiff_block(pages, ("page", "next"), order)


def svg() -> bytes:
    return (
        b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY ns "http://ns.adobe.com/">]>'
        b'<!-- <metadata> --><svg xmlns="http://www.w3.org/2000/svg" width="96" height="64">'
        b'<title>A lake</title><rect width="48" height="64" fill="#dc1e1e"/>'
        b'<metadata id="a>b">' + xmp().replace(b"urn:it", b"&ns;") + b"</metadata>"
        b'<rect x="60" width="9" height="9"/></svg>'
    )


def files() -> dict[str, bytes]:
    """Returns files of each format with a location in every known way, by names that start with the format's."""
    both: dict[str, Any] = {"exif": b"Exif\0\0" + exif_block(">"), "xmp": xmp()}
    return {
        "jpeg": jpeg(),
        "png": png(),
        "webp": pictures.encode("WEBP", lossless=True, **both),
        "webp, animated": pictures.encode(
            "WEBP", pictures.frames(1)[0], save_all=True, append_images=pictures.frames(3)[1:], **both
        ),
        "gif": with_gif_xmp(xmp()),
        "gif, in blocks": with_gif_xmp(xmp(), as_blocks=True),
        "avif": pictures.encode("AVIF", speed=10, **both),
        "tiff": tiff(),
        "tiff, big endian": tiff(">"),
        "tiff, BigTIFF": big_tiff(),
        "heic": pictures.HEIC,
        "svg": svg(),
    }


def big_tiff() -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "Canon"
    exif[700] = xmp()
    exif.get_ifd(0x8825).update({1: "N", 2: (47.0, 33.0, 28.1234567), 0x1B: b"ASCII\0\0\0" + TOWN})
    return pictures.encode("TIFF", exif=exif, big_tiff=True)


FILES = files()


def pixels(data: bytes) -> bytes:
    """Returns the pixels of all frames or pages."""
    if data[4:12] == b"ftypheic":
        return bytes(pi_heif.open_heif(io.BytesIO(data)).to_pillow().tobytes())
    if data.startswith(b"<?xml"):
        return bytes(vips(data).write_to_memory())
    with Image.open(io.BytesIO(data)) as image:
        return b"".join(frame.convert("RGBA").tobytes() for frame in ImageSequence.Iterator(image))


def find_marks(data: bytes) -> list[bytes]:
    """Returns the marks of locations that are in the bytes."""
    marks = [TOWN, TOWN.hex().encode(), b"XQZ", b"47,33.4687N"]
    for order in "<>":
        of_geo_tiff, of_heic = struct.pack(order + "d", 47.123456), struct.pack(order + "IIII", 33, 1, 30, 1)
        marks += [struct.pack(order + "II", *SECONDS), of_geo_tiff, of_heic]
    return [mark for mark in marks if mark in data]


def box(kind: bytes, *bodies: bytes) -> bytes:
    body = b"".join(bodies)
    return struct.pack(">I", 8 + len(body)) + kind + body


def probed(data: bytes) -> dict[str, object]:
    fd = os.memfd_create("picture")
    try:
        os.write(fd, data)
        return imaging.probe(f"/proc/self/fd/{fd}", max_pixels=1_000_000).exif
    finally:
        os.close(fd)


def vips(data: bytes) -> pyvips.Image:
    return pyvips.Image.new_from_buffer(data, "")


def patched(data: bytes, patches: list[Patch]) -> bytes:
    """Applies patches, after a check that each is within the file, after the one before it, and not empty."""
    copy, end = bytearray(data), 0
    for offset, new in patches:
        assert end <= offset < offset + len(new) <= len(data)
        end = offset + len(new)
        copy[offset:end] = new
    assert len(copy) == len(data)
    return bytes(copy)
