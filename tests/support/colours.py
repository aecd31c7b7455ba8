"""Samples of one chart in many colour spaces: by ICC profiles, PNG chunks, and code points of AVIF and HEIC."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import pyvips
from PIL import Image

from tests.support import pictures
from tests.support.icc_profiles import (
    ADOBE_RGB,
    BT2020,
    P3,
    PROPHOTO,
    SRGB,
    SRGB_CURVE_TAG,
    cicp_tag,
    cmyk_profile,
    dot_gain,
    gamma,
    grey_profile,
    lifted_profile,
    lut_profile,
    parametric,
    profile,
    rgb_profile,
    srgb_light,
    table,
    two_tables_profile,
    with_cicp,
)

PATCH_PX = 16
# Greys and colours. In a wider colour space some are outside of sRGB.
CHART: tuple[tuple[int, int, int], ...] = (
    (16, 16, 16), (64, 64, 64), (128, 128, 128), (255, 255, 255),
    (200, 80, 60), (60, 160, 80), (70, 90, 180), (180, 120, 100),
)  # fmt: skip
SIZE = (PATCH_PX * len(CHART), PATCH_PX)


def chart(mode: str = "RGB") -> Image.Image:
    """Returns the patches in a row. In CMYK the first bands are those of RGB, without a conversion."""
    image = Image.new("RGB", SIZE)
    for index, colour in enumerate(CHART):
        image.paste(colour, (PATCH_PX * index, 0, PATCH_PX * (index + 1), PATCH_PX))
    if mode == "CMYK":
        red, green, blue = image.split()
        return Image.merge("CMYK", (red, green, blue, red.point(lambda value: value // 4)))
    return image.convert(mode)


def patches(image: Image.Image) -> list[tuple[int, ...]]:
    """Returns the colour in the middle of each patch."""
    rgb = image.convert("RGB")
    middle = PATCH_PX // 2
    return [rgb.getpixel((PATCH_PX * index + middle, middle)) for index in range(len(CHART))]  # type: ignore[misc]


# PNG


Chunk = tuple[bytes, bytes]


def png(
    *chunks: Chunk,
    image: Image.Image | None = None,
    before_pixels: Sequence[Chunk] = (),
    after_pixels: Sequence[Chunk] = (),
) -> bytes:
    """Returns a PNG with additional chunks: after IHDR, before IDAT, and after IDAT."""
    data = pictures.encode("PNG", image or chart())
    pixels, end = data.index(b"IDAT") - 4, len(data) - 12
    front, middle, back = (
        b"".join(pictures.chunk(*chunk) for chunk in some) for some in (chunks, before_pixels, after_pixels)
    )
    return data[:33] + front + data[33:pixels] + middle + data[pixels:end] + back + data[end:]


def cicp(primaries: int, transfer: int, matrix: int = 0, full: int = 1) -> Chunk:
    return b"cICP", bytes([primaries, transfer, matrix, full])


def iccp(data: bytes) -> Chunk:
    return b"iCCP", b"icc\0\0" + zlib.compress(data)


def srgb_chunk() -> Chunk:
    return b"sRGB", b"\0"


def gama(value: float) -> Chunk:
    return b"gAMA", struct.pack(">I", round(value * 100_000))


def chrm(primaries: Sequence[float]) -> Chunk:
    white, red = list(primaries[6:]), list(primaries[:6])
    return b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in white + red))


def png16(*chunks: Chunk) -> bytes:
    """Returns the chart as a PNG with 16 bits per band."""
    rows = np.asarray(chart()).astype(">u2") * 257
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        pictures.chunk(kind, data)
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", *SIZE, 16, 2, 0, 0, 0)),
            *chunks,
            (b"IDAT", zlib.compress(body)),
            (b"IEND", b""),
        )
    )


# AVIF and HEIC


def nclx(primaries: int, transfer: int, matrix: int, *, full: bool = True) -> bytes:
    """Returns the contents of a `colr` box."""
    return b"nclx" + struct.pack(">HHHB", primaries, transfer, matrix, full << 7)


def avif(
    primaries: int = 1, transfer: int = 13, matrix: int = 6, *, full: bool = True, bits: int = 8, mode: str = "RGB",
    profile: bytes | None = None,
) -> bytes:  # fmt: skip
    """Returns the chart as an AVIF with these code points and, if given, a profile. Its pixels are not converted."""
    if bits == 8:
        subsampling = "4:0:0" if mode == "L" else "4:4:4"
        data = pictures.encode("AVIF", chart(mode), quality=100, subsampling=subsampling, speed=9)
        at = data.index(b"colrnclx") + 4
        body = nclx(primaries, transfer, matrix, full=full)
        data = data[:at] + body + data[at + len(body) :]
    else:
        deep = pyvips.Image.new_from_array(np.asarray(chart()).astype(np.uint16) * 257, interpretation="rgb16")
        options = {"Q": 100, "subsample_mode": "off", "effort": 0}
        data = bytes(deep.heifsave_buffer(compression="av1", bitdepth=bits, keep="none", **options))
        data = with_colr(data, nclx(primaries, transfer, matrix, full=full))
    return with_colr(data, b"prof" + profile) if profile else data


def avif_with_av1_primaries(primaries: int) -> bytes:
    """Returns an AVIF without `colr`, whose AV1 sequence header has these primaries."""
    data = avif()
    data = data.replace(b"colr", b"free")
    start = data.index(b"mdat") + 4
    head = format(int.from_bytes(data[start : start + 32]), "0256b")
    at = head.index(f"1{1:08b}{13:08b}{6:08b}") + 1
    head = f"{head[:at]}{primaries:08b}{head[at + 8 :]}"
    return data[:start] + int(head, 2).to_bytes(32) + data[start + 32 :]


def with_colr(data: bytes, contents: bytes) -> bytes:
    """Returns the AVIF with a `colr` as the first property in `ipma`. The file must have `mdat` after `meta`."""
    box = struct.pack(">I", len(contents) + 8) + b"colr" + contents
    ipco = data.index(b"ipco") - 4
    end = ipco + _size(data, ipco)
    number, at = 1, ipco + 8
    while at < end:
        number, at = number + 1, at + _size(data, at)
    ipma = data.index(b"ipma") - 4
    count = ipma + 18
    out = bytearray(data)
    out[count] += 1
    out[count + 1 : count + 1] = bytes([number])
    out[end:end] = box
    grown = len(box) + 1
    for kind, more in ((b"meta", grown), (b"iprp", grown), (b"ipco", len(box)), (b"ipma", 1)):
        at = out.index(kind) - 4
        if kind == b"ipma":
            at = out.index(kind, end + len(box)) - 4
        out[at : at + 4] = struct.pack(">I", _size(out, at) + more)
    return _shift_offsets(out, grown)


def _size(data: bytes | bytearray, at: int) -> int:
    return int.from_bytes(data[at : at + 4])


def _shift_offsets(data: bytearray, by: int) -> bytes:
    """Returns the file with the offsets in `iloc` increased by `by`."""
    at = data.index(b"iloc") + 4
    version, sizes = data[at], int.from_bytes(data[at + 4 : at + 6])
    of_offset, of_length, of_base = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    items = int.from_bytes(data[at + 6 : at + 8])
    at += 8
    for _ in range(items):
        at += 2
        method = data[at + 1] if version else 0
        at += 4 if version else 2
        at += of_base
        extents = int.from_bytes(data[at : at + 2])
        at += 2
        for _ in range(extents):
            if method == 0:
                data[at : at + of_offset] = (int.from_bytes(data[at : at + of_offset]) + by).to_bytes(of_offset)
            at += of_offset + of_length
    return bytes(data)


# All samples by name


def _pngs() -> dict[str, bytes]:
    p3, grey = rgb_profile(P3, SRGB_CURVE_TAG), grey_profile(table(dot_gain, 256))
    dark, adobe = rgb_profile(SRGB, gamma(1.8)), rgb_profile(ADOBE_RGB, gamma(2.2))
    sdr_only = (b"cLLI", struct.pack(">II", 2_030_000, 1_000_000))  # no pixel is brighter than SDR white
    return {
        "iCCP P3": png(iccp(p3)),
        "iCCP P3, named sRGB": png(iccp(rgb_profile(P3, SRGB_CURVE_TAG, name="Display P3 with sRGB Transfer"))),
        "iCCP P3, palette": png(iccp(p3), image=chart().quantize(64)),
        "iCCP P3, 16 bits": png16(iccp(p3)),
        "iCCP P3 of version 4": png(iccp(rgb_profile(P3, SRGB_CURVE_TAG, version=4))),
        "iCCP of version 5": png(iccp(rgb_profile(P3, SRGB_CURVE_TAG, version=5))),
        "iCCP Adobe RGB": png(iccp(rgb_profile(ADOBE_RGB, gamma(2.19921875)))),
        "iCCP ProPhoto": png(iccp(rgb_profile(PROPHOTO, gamma(1.8)))),
        "iCCP BT.2020": png(iccp(rgb_profile(BT2020, table(srgb_light)))),
        "iCCP linear sRGB": png(iccp(rgb_profile(SRGB, parametric(1), name="linear sRGB"))),
        "iCCP of sRGB": png(iccp(rgb_profile(SRGB, table(srgb_light, 26)))),
        "iCCP table": png(iccp(lut_profile())),
        "iCCP table of version 4": png(iccp(lut_profile(version=4))),
        "iCCP of lifted black": png(iccp(lifted_profile())),
        "iCCP of lifted black, version 4": png(iccp(lifted_profile(version=4))),
        "iCCP of two tables": png(iccp(two_tables_profile())),
        "iCCP grey": png(iccp(grey), image=chart("L")),
        "iCCP grey, alpha": png(iccp(grey), image=chart("LA")),
        "iCCP grey of gamma 1": png(iccp(grey_profile(gamma(1))), image=chart("L")),
        "iCCP grey of gamma 2.2": png(iccp(grey_profile(gamma(2.2))), image=chart("L")),
        "iCCP RGB on grey": png(iccp(dark), image=chart("L")),
        "iCCP grey on RGB": png(iccp(grey)),
        "iCCP cicp P3": png(iccp(with_cicp(12, 13))),
        "iCCP cicp alone": png(iccp(profile({b"cicp": cicp_tag(12, 13)}, version=4))),
        "iCCP after PLTE": png(image=chart().quantize(64), before_pixels=[iccp(p3)]),
        "iCCP damaged, gAMA": png((b"iCCP", b"icc\0\0" + zlib.compress(p3)[:50]), gama(1)),
        "iCCP invalid, gAMA": png(iccp(b"nothing" * 40), gama(1)),
        "iCCP CMYK, gAMA": png(iccp(cmyk_profile()), gama(1)),
        "iCCP, sRGB": png(srgb_chunk(), iccp(p3)),
        "cICP P3": png(cicp(12, 13)),
        "cICP P3, iCCP": png(cicp(12, 13), iccp(adobe)),
        "cICP sRGB, iCCP": png(cicp(1, 13), iccp(adobe)),
        "cICP BT.2020, BT.709": png(cicp(9, 1)),
        "cICP gamma 2.2": png(cicp(1, 4)),
        "cICP gamma 2.8": png(cicp(1, 5)),
        "cICP linear": png(cicp(1, 8)),
        "cICP SMPTE 240M": png(cicp(1, 7)),
        "cICP SMPTE 428": png(cicp(1, 17)),
        "cICP P3, grey": png(cicp(12, 1), image=chart("L")),
        "cICP unspecified, iCCP": png(cicp(2, 13), iccp(p3)),
        "cICP unknown, iCCP": png(cicp(99, 13), iccp(p3)),
        "cICP limited, iCCP": png(cicp(12, 13, 0, 0), iccp(adobe)),
        "cICP too short, gAMA": png((b"cICP", b"\x0c\x0d\0"), gama(1)),
        "cICP after PLTE": png(image=chart().quantize(64), before_pixels=[cicp(12, 13)]),
        "cICP PQ": png(cicp(9, 16), sdr_only),
        "cICP PQ, 16 bits": png16(cicp(9, 16), sdr_only),
        "cICP PQ, P3": png(cicp(12, 16), sdr_only),
        "cICP PQ, grey": png(cicp(9, 16), sdr_only, image=chart("L")),
        "cICP HLG": png(cicp(9, 18), sdr_only),
        "iCCP cicp PQ": png(iccp(with_cicp(9, 16)), sdr_only),
        "iCCP cicp HLG": png(iccp(with_cicp(9, 18)), sdr_only),
        "gAMA 1": png(gama(1)),
        "gAMA 1, 16 bits": png16(gama(1)),
        "gAMA 0.45455": png(gama(0.45455)),
        "gAMA 0.5": png(gama(0.5)),
        "gAMA 0.55": png(gama(0.55)),
        "gAMA 0.55, grey": png(gama(0.55), image=chart("L")),
        "gAMA 0": png(gama(0)),
        "gAMA too long": png((b"gAMA", gama(1)[1] + b"\0")),
        "gAMA twice": png(gama(1), gama(0.55)),
        "gAMA after PLTE": png(image=chart().quantize(64), before_pixels=[gama(1)]),
        "gAMA after IDAT": png(after_pixels=[gama(1)]),
        "gAMA damaged": png(gama(1)).replace(pictures.chunk(*gama(1))[-4:], bytes(4)),
        "cHRM": png(chrm(P3)),
        "cHRM, gAMA 0.45455": png(chrm(P3), gama(0.45455)),
        "cHRM, gAMA 0.55": png(chrm(P3), gama(0.55)),
        "cHRM of sRGB, gAMA 0.45455": png(chrm(SRGB), gama(0.45455)),
        "cHRM of another white, gAMA": png(chrm((*SRGB[:6], 0.3457, 0.3585)), gama(0.5)),
        "cHRM of one colour, gAMA": png(chrm((0.64, 0.33, 0.64, 0.33, 0.64, 0.33, 0.3127, 0.3290)), gama(0.55)),
        "cHRM of zeros, gAMA": png((b"cHRM", bytes(32)), gama(0.55)),
        "sRGB, gAMA, cHRM": png(srgb_chunk(), gama(1), chrm(P3)),
        "sRGB unknown, gAMA": png((b"sRGB", b"\x09"), gama(1)),
        "sRGB too long, gAMA": png((b"sRGB", b"\0\0"), gama(1)),
    }  # fmt: skip


def _jpegs() -> dict[str, bytes]:
    grey = grey_profile(table(dot_gain, 256))

    def jpeg(mode: str = "RGB", profile: bytes | None = None) -> bytes:
        options = {"subsampling": "4:4:4"} if mode == "RGB" else {}
        return pictures.encode("JPEG", chart(mode), quality=100, icc_profile=profile, **options)

    return {
        "JPEG": jpeg(),
        "JPEG P3": jpeg(profile=rgb_profile(P3, SRGB_CURVE_TAG)),
        "JPEG grey": jpeg("L", grey),
        "JPEG grey of gamma 1.8": jpeg("L", grey_profile(gamma(1.8))),
        "JPEG grey against Lab": jpeg("L", grey_profile(gamma(1.8), pcs=b"Lab ")),
        "JPEG RGB on grey": jpeg("L", rgb_profile(SRGB, gamma(1.8))),
        "JPEG table on grey": jpeg("L", lut_profile()),
        "JPEG grey on RGB": jpeg(profile=grey),
        "JPEG CMYK on RGB": jpeg(profile=cmyk_profile()),
        "JPEG CMYK": jpeg("CMYK"),
        "JPEG CMYK, RGB": jpeg("CMYK", rgb_profile(P3, SRGB_CURVE_TAG)),
        "JPEG CMYK, CMYK": jpeg("CMYK", cmyk_profile()),
    }


def _others() -> dict[str, bytes]:
    p3, grey = rgb_profile(P3, SRGB_CURVE_TAG), grey_profile(table(dot_gain, 256))
    return {
        "WebP P3": pictures.encode("WEBP", chart(), lossless=True, icc_profile=p3),
        "WebP grey on RGB": pictures.encode("WEBP", chart("L"), lossless=True, icc_profile=grey),
        "AVIF": avif(),
        "AVIF P3": avif(12, 13),
        "AVIF P3, 10 bits": avif(12, 13, bits=10),
        "AVIF BT.2020": avif(9, 14),
        "AVIF BT.709": avif(1, 1),
        "AVIF gamma 2.2": avif(1, 4),
        "AVIF gamma 2.8": avif(1, 5),
        "AVIF linear": avif(1, 8),
        "AVIF SMPTE 240M": avif(7, 7),
        "AVIF DCI-P3": avif(11, 17),
        "AVIF BT.470M": avif(4, 13),
        "AVIF EBU 3213": avif(22, 13),
        "AVIF unspecified": avif(2, 2),
        "AVIF unknown": avif(99, 13),
        "AVIF of another matrix": avif(1, 13, 1),
        "AVIF limited": avif(full=False),
        "AVIF grey": avif(mode="L"),
        "AVIF grey, limited": avif(mode="L", full=False),
        "AVIF grey, linear": avif(1, 8, mode="L"),
        "AVIF iCCP P3, nclx": avif(9, 16, profile=p3),
        "AVIF P3 in AV1 only": avif_with_av1_primaries(12),
    }


def samples() -> dict[str, bytes]:
    """Returns all pictures of the chart by name."""
    return {**_pngs(), **_jpegs(), **_others()}
