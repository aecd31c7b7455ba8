"""The eight formats: their media types, and how the first bytes of a file distinguish them."""

from __future__ import annotations

import re

MIME_TYPES: dict[str, str] = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "gif": "image/gif",
    "avif": "image/avif",
    "tiff": "image/tiff",
    "heic": "image/heic",
    "svg": "image/svg+xml",
}

HEAD_BYTES = 4096

_MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),  # BigTIFF
    (b"MM\0+", "tiff"),
)
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_ANY_CODEC_BRANDS = frozenset({b"mif1", b"mif2", b"msf1", b"miaf"})
_SVG_ROOT = re.compile(rb"<(?:[\w.-]+:)?svg[\s/>]")


def sniff(head: bytes) -> str | None:
    """Returns the format of a file that starts with `head` (its first HEAD_BYTES), a key of `MIME_TYPES`, or None."""
    for magic, format_name in _MAGIC:
        if head.startswith(magic):
            return format_name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        return _sniff_heif(head)
    return "svg" if _starts_svg(head) else None


def _sniff_heif(head: bytes) -> str | None:
    """Returns "avif" or "heic" by brand. Brands like `mif1` name no codec; then the item types in the header decide."""
    size = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12]} | {head[i : i + 4] for i in range(16, size - 3, 4)}
    avif, heic = bool(brands & _AVIF_BRANDS), bool(brands & _HEIC_BRANDS)
    if avif != heic:
        return "avif" if avif else "heic"
    if not avif and not brands & _ANY_CODEC_BRANDS:
        return None
    av1, hevc = head.find(b"av01"), head.find(b"hvc1")
    if av1 == hevc == -1:
        return None
    return "avif" if hevc == -1 or -1 < av1 < hevc else "heic"


def _starts_svg(head: bytes) -> bool:
    """Returns whether the root element is svg, after any byte order mark, declarations and comments."""
    i = 3 if head.startswith(b"\xef\xbb\xbf") else 0
    while True:
        while i < len(head) and head[i] in b" \t\r\n":
            i += 1
        if head.startswith(b"<!--", i):
            i = _after(head, b"-->", i)
        elif head.startswith(b"<?", i):
            i = _after(head, b"?>", i)
        elif head[i : i + 9].upper() == b"<!DOCTYPE":
            subset, close = head.find(b"[", i), head.find(b">", i)
            i = _after(head, b">", _after(head, b"]", subset)) if -1 < subset < close else _after(head, b">", i)
        else:
            return _SVG_ROOT.match(head, i) is not None


def _after(head: bytes, mark: bytes, start: int) -> int:
    """Returns the offset after the next `mark`, or the end of `head` if there is none."""
    at = head.find(mark, start)
    return len(head) if at == -1 else at + len(mark)
