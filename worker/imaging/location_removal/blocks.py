"""The blocks of metadata that containers hold: EXIF, Photoshop's image resources, and what says itself what it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from worker.imaging.containers.tiff import LAYOUTS
from worker.imaging.formats.jpeg import XMP_HEAD
from worker.imaging.location_removal.directories import Blankers, blank_directories
from worker.imaging.location_removal.iptc import blank_iptc
from worker.imaging.location_removal.regions import Copy, Region, Unreadable
from worker.imaging.location_removal.xmp import blank_xmp

_XMP_TAG, _IPTC_TAG, _RESOURCES_TAG = 0x02BC, 0x83BB, 0x8649
# Adobe Photoshop File Formats Specification: image resource ids.
_RESOURCE_KINDS = frozenset({b"8BIM", b"PHUT", b"MeSa", b"AgHg", b"DCSR"})
_IPTC, _EXIF, _EXIF_MORE, _XMP, _IPTC_DIGEST = 0x0404, 0x0422, 0x0423, 0x0424, 0x0425


def blank_exif(region: Region) -> None:
    """A TIFF structure, maybe behind the head that it has in a JPEG."""
    start = 6 if region.read(0, 5) == b"Exif\0" else 0
    blank_directories(region.part(start, region.size), _IN_TIFF)


def blank_resources(region: Region) -> None:
    """Those that hold metadata. Their digest of IPTC would tell whether a guess at a place is right, and goes too."""
    before, digests = region.copy.changed, []
    for kind, value in _resources(region):
        with suppress(Unreadable):
            if kind == _IPTC:
                blank_iptc(value)
            elif kind == _XMP:
                blank_xmp(value)
            elif kind in {_EXIF, _EXIF_MORE}:
                blank_directories(value, _IN_EXIF)
            elif kind == _IPTC_DIGEST:
                digests.append(value)
    if region.copy.changed > before:
        for digest in digests:
            digest.fill(0, digest.size)


def _resources(region: Region) -> Iterator[tuple[int, Region]]:
    """Id and value of each."""
    at = 0
    while len(head := region.read(at, 7)) == 7 and head[:4] in _RESOURCE_KINDS:
        region.copy.step()
        at += 6 + (1 + head[6] + 1) // 2 * 2  # a name, with that of its length of even length
        size = region.read(at, 4)
        value = region.part(at + 4, int.from_bytes(size))
        yield int.from_bytes(head[4:6]), value
        at += 4 + (value.size + 1) // 2 * 2


def blank_any(region: Region) -> None:
    """A block that says itself what it is."""
    head = region.read(0, len(XMP_HEAD))
    if head.startswith((b"Exif\0", *LAYOUTS)):
        blank_exif(region)
    elif head[:4] in _RESOURCE_KINDS:
        blank_resources(region)
    elif head.startswith(b"\x1c"):
        blank_iptc(region)
    else:
        blank_xmp(region)


def tells_place(block: bytes) -> bool:
    copy = Copy(bytearray(block))
    with suppress(Unreadable):
        blank_any(copy.region((0, copy.size)))
    return copy.changed > 0


def _blank_iptc_of_tiff(region: Region) -> None:
    """Some writers call it numbers of 32 bits, and turn the bytes of each of them; of that nothing is left."""
    block = region.read(0, region.size)
    turned = b"".join(block[at : at + 4][::-1] for at in range(0, len(block), 4))
    if turned.startswith(b"\x1c") and not block.startswith(b"\x1c"):
        if tells_place(turned):
            region.fill(0, region.size)
    else:
        blank_iptc(region)


# Resources are looked into from outside only, since they may hold EXIF themselves.
_IN_EXIF: Blankers = {_XMP_TAG: blank_xmp, _IPTC_TAG: _blank_iptc_of_tiff}
_IN_TIFF: Blankers = {**_IN_EXIF, _RESOURCES_TAG: blank_resources}
