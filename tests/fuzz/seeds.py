"""Small files of every format and kind to mutate. They are equal in every run."""

from __future__ import annotations

import random
from functools import cache

from PIL import Image

from tests.support import pictures


@cache
def seeds_of(form: str) -> list[bytes]:
    return _SEEDS[form]()


def _photo(mode: str = "RGB") -> Image.Image:
    """Returns patches of colour, which use all features of an encoder, in a small picture with few bytes of pixels."""
    noise = random.Random(1839).randbytes(12 * 9 * len(mode))
    return Image.frombytes(mode, (12, 9), noise).resize((48, 36), Image.Resampling.BICUBIC)


def _exif() -> bytes:
    return pictures.exif_block(
        [pictures.ascii_entry(0x010F, b"Daguerre"), (0x0112, 3, 1, b"\6\0")],
        photo=[pictures.rationals(0x829A, (1, 250)), pictures.ascii_entry(0x9003, b"2024:05:06 07:08:09")],
        gps=[(1, 2, 2, b"S\0"), pictures.rationals(2, (33, 1), (51, 1), (30, 1))],
    )


def _profile() -> bytes:
    return pictures.icc_profile(red=(0.1431, 0.0606, 0.7141), blue=(0.4361, 0.2225, 0.0139))


def _with_metadata(form: str, **options: object) -> bytes:
    return pictures.encode(form, _photo(), exif=_exif(), icc_profile=_profile(), **options)


def _jpegs() -> list[bytes]:
    return [
        _with_metadata("JPEG"),
        pictures.encode("JPEG", _photo(), progressive=True),
        pictures.encode("JPEG", _photo("L"), restart_marker_rows=1),
        pictures.encode("JPEG", _photo("CMYK"), comment=b"a comment"),
    ]


def _pngs() -> list[bytes]:
    return [
        _with_metadata("PNG"),
        pictures.encode("PNG", _photo().quantize(16)),
        pictures.encode("PNG", _photo("RGBA")),
        pictures.animate("PNG", 3),
        pictures.deep_png(30_000),
    ]


def _webps() -> list[bytes]:
    return [
        _with_metadata("WEBP"),
        pictures.encode("WEBP", _photo("RGBA")),
        pictures.encode("WEBP", _photo(), lossless=True),
        pictures.animate("WEBP", 3),
    ]


def _gifs() -> list[bytes]:
    return [
        pictures.encode("GIF", _photo().quantize(16)),
        pictures.encode("GIF", _photo().quantize(16), interlace=1),
        pictures.animate("GIF", 3),
    ]


def _avifs() -> list[bytes]:
    options = {"speed": 10, "max_threads": 1}
    return [
        _with_metadata("AVIF", **options),
        pictures.encode("AVIF", _photo("RGBA"), **options),
        pictures.encode("AVIF", _photo("L"), subsampling="4:0:0", **options),
    ]


def _tiffs() -> list[bytes]:
    return [
        pictures.encode("TIFF", _photo(), tiffinfo={0x010F: "Daguerre", 0x0112: 6}),
        *(
            pictures.encode("TIFF", _photo(), compression=compression)
            for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
        ),
        pictures.encode("TIFF", _photo().convert("1"), compression="group4"),
        pictures.encode("TIFF", _photo("RGBA"), icc_profile=_profile()),
        pictures.encode("TIFF", _photo("CMYK"), big_tiff=True),
        pictures.animate("TIFF", 3),
        pictures.encode("TIFF", _photo(), save_all=True, append_images=[pictures.quarters(9, 5)]),
    ]


def _svgs() -> list[bytes]:
    return [
        pictures.SVG,
        b"""<!DOCTYPE svg [<!ENTITY a "text">]><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 96 64">
<defs><linearGradient id="p"><stop offset="0" stop-color="red"/><stop offset="1"/></linearGradient>
<filter id="f"><feGaussianBlur stdDeviation="3"/><feTurbulence baseFrequency="0.1"/></filter>
<mask id="m"><circle r="20" fill="white"/></mask><g id="a"><rect width="9" height="9"/></g></defs>
<style>.b { fill: url(#p) }</style><path class="b" d="M0 0L50 9C1 2 3 4 5 6A9 9 0 0 1 30 30z" filter="url(#f)"/>
<use href="#a" x="9" transform="rotate(45)"/><text x="9" y="30" mask="url(#m)">&a;</text></svg>""",
    ]


_SEEDS = {
    "jpeg": _jpegs,
    "png": _pngs,
    "webp": _webps,
    "gif": _gifs,
    "avif": _avifs,
    "tiff": _tiffs,
    "heic": lambda: [pictures.HEIC],
    "svg": _svgs,
}
