"""Names unsupported file types that people upload, by their first bytes."""

from __future__ import annotations

import re

from worker.imaging.containers.tiff_contents import Contents

# Offset, bytes and name. The first match counts.
_MAGIC = (
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"II\xbc\x01", "JPEG XR"),
    (0, b"\x8bJNG\r\n\x1a\n", "JNG"),
    (0, b"\x8aMNG\r\n\x1a\n", "MNG"),
    (0, b"icns", "ICNS"),
    (0, b"8BPS", "PSD"),
    (0, b"gimp xcf", "XCF"),
    (0, b"%PDF-", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"#?RGBE", "Radiance HDR"),
    (0, b"DDS ", "DDS"),
    (0, b"qoif", "QOI"),
    (0, b"FLIF", "FLIF"),
    (0, b"BPG\xfb", "BPG"),
    (0, b"AT&TFORM", "DjVu"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"),
    (40, b" EMF", "EMF"),
    (128, b"DICM", "DICOM"),
    (0, b"FUJIFILMCCD-RAW", "raw camera file (RAF)"),
    (0, b"IIRO", "raw camera file (ORF)"),
    (0, b"IIRS", "raw camera file (ORF)"),
    (0, b"MMOR", "raw camera file (ORF)"),
    (0, b"IIU\0", "raw camera file (RW2)"),
    (0, b"FOVb", "raw camera file (X3F)"),
    (0, b"\0MRM", "raw camera file (MRW)"),
    (6, b"HEAPCCDR", "raw camera file (CRW)"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM video"),
    (0, b"OggS", "Ogg"),
    (0, b"PK\3\4", "ZIP archive"),
)
# The container of HEIF is also that of other codecs and of videos (ISO/IEC 14496-12).
_MAX_BRANDS_BYTES = 256
_BRANDS = {
    b"crx ": "raw camera file (CR3)",
    b"vvic": "HEIF with VVC",
    b"vvis": "HEIF with VVC",
    b"evbi": "HEIF with EVC",
    b"evmi": "HEIF with EVC",
    b"avci": "HEIF with AVC",
    b"avcs": "HEIF with AVC",
    b"jpeg": "HEIF with JPEG",
    b"jpgs": "HEIF with JPEG",
    b"j2ki": "HEIF with JPEG 2000",
    b"j2is": "HEIF with JPEG 2000",
    b"unif": "HEIF without compression",
    b"qt  ": "QuickTime video",
}
_HEIF_BRANDS = frozenset({b"mif1", b"mif2", b"mif3", b"msf1", b"miaf"})
# Codecs by the types of items with coded pixels.
CODECS = {
    b"hvc1": "HEVC",
    b"lhv1": "layered HEVC",
    b"av01": "AV1",
    b"vvc1": "VVC",
    b"evc1": "EVC",
    b"avc1": "AVC",
    b"jpeg": "JPEG",
    b"j2k1": "JPEG 2000",
    b"jxl1": "JPEG XL",
    b"unci": "no compression",
}


def name_kind(head: bytes) -> str | None:
    """Returns the type of a file that starts with `head`, for a message to the client; None if it is unknown."""
    for at, magic, name in _MAGIC:
        if head.startswith(magic, at):
            return name
    return _name_brand(head) if head[4:8] == b"ftyp" else _name_by_pattern(head)


def _name_by_pattern(head: bytes) -> str | None:
    """Returns types whose fixed bytes are too few to be certain."""
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "AVI video"
    if _ICON.match(head):
        return "ICO" if head[2] == 1 else "CUR"
    if _TGA.match(head):
        return "TGA"
    if head[:2] == b"BM" and head[14:18] in _BMP_HEADER_SIZES:
        return "BMP"
    if _PNM.match(head):
        return "PNM"
    return "HTML page" if _HTML.match(head) else None


# An icon has at least one picture at the place where a TGA has no entries of a colour map.
_ICON = re.compile(rb"\0\0[\1\2]\0[^\0]\0")
_TGA = re.compile(rb"\0\0[\2\3\n\v]\0{5}.{8}[\x08\x0f\x10\x18\x20]", re.DOTALL)
_PNM = re.compile(rb"P[1-7fF][\s#]")
_HTML = re.compile(rb"\s*<(!doctype\s+html|html)", re.IGNORECASE)
_BMP_HEADER_SIZES = frozenset(size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124))


def _name_brand(head: bytes) -> str | None:
    """Returns the type by its brands. None if the file ends within its brands."""
    if len(head) < min(int.from_bytes(head[:4]), _MAX_BRANDS_BYTES):
        return None
    size = min(int.from_bytes(head[:4]), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))]
    for brand in brands:
        if brand in _BRANDS:
            return _BRANDS[brand]
    if _HEIF_BRANDS.isdisjoint(brands):
        return "MP4 video"
    codec = next((name for item, name in CODECS.items() if item in head), None)
    return "HEIF without a picture" if codec is None else f"HEIF with {codec}"


# Decoded by libvips's libtiff: none, CCITT, LZW, JPEG, Deflate, PackBits, NeXT, ThunderScan, SGI Log, WebP.
_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 7, 8, 32766, 32771, 32773, 32809, 32946, 34676, 34677, 50001})
_COMPRESSION_NAMES = {
    6: "old-style JPEG",
    9: "JBIG",
    10: "JBIG",
    32767: "Sony ARW",
    32909: "PixarLog",
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34661: "JBIG",
    34712: "JPEG 2000",
    34713: "Nikon NEF",
    34715: "JBIG2",
    34887: "LERC",
    34892: "lossy JPEG",
    34925: "LZMA",
    34926: "zstd",
    34927: "WebP",
    34933: "PNG",
    34934: "JPEG XR",
    50000: "zstd",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
# Samples of a sensor (CFA), and LinearRaw.
_RAW_PHOTOMETRICS = frozenset({32803, 34892})


def name_tiff(head: bytes, contents: Contents) -> str | None:
    """Returns the type of a TIFF that libtiff cannot decode, or of which it decodes only a small copy; None for
    others.
    """
    if head[8:10] == b"CR":
        return "raw camera file (CR2)"
    if contents.photometrics & _RAW_PHOTOMETRICS:
        return "raw camera file (DNG)" if contents.is_dng else "raw camera file"
    unknown = min(contents.compressions - _COMPRESSIONS, default=None)
    return None if unknown is None else f"{_COMPRESSION_NAMES.get(unknown, f'scheme {unknown}')}-compressed TIFF"
