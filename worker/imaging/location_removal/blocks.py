"""Locations in the blocks of metadata that several containers have: EXIF, IPTC, and Photoshop's image resources."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from worker.imaging.containers.jpeg import EXIF_HEAD, XMP_HEAD
from worker.imaging.containers.tiff import LAYOUTS
from worker.imaging.location_removal.directories import Blankers, blank_directories
from worker.imaging.location_removal.regions import Copy, Region, Unreadable
from worker.imaging.location_removal.xmp import blank_xmp

_XMP_TAG, _IPTC_TAG, _RESOURCES_TAG = 0x02BC, 0x83BB, 0x8649
# Adobe Photoshop File Formats Specification: image resource ids.
_RESOURCE_KINDS = frozenset({b"8BIM", b"PHUT", b"MeSa", b"AgHg", b"DCSR"})
_IPTC, _EXIF, _EXIF_MORE, _XMP, _IPTC_DIGEST = 0x0404, 0x0422, 0x0423, 0x0424, 0x0425
# IPTC-IIM 4.2, record 2: content location code and name, city, sublocation, province, country code and name.
_IPTC_LOCATIONS = frozenset({26, 27, 90, 92, 95, 100, 101})
_IPTC_START = 0x1C


def blank_tiff(copy: Copy) -> None:
    """Blanks a TIFF file, which has the structure of EXIF."""
    blank_exif(copy.region((0, copy.size)))


def blank_exif(region: Region) -> None:
    """Blanks a TIFF structure, with or without the header that it has in a JPEG."""
    start = 6 if region.read(len(EXIF_HEAD), 0) == EXIF_HEAD else 0
    blank_directories(region.part(start, region.size), _IN_TIFF)


def blank_resources(region: Region) -> None:
    """Blanks the resources with metadata, and the digest of IPTC, which could confirm a guessed location."""
    changes, digests = region.copy.changes, []
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
    if region.copy.changes > changes:
        for digest in digests:
            digest.fill(0, digest.size)


def _resources(region: Region) -> Iterator[tuple[int, Region]]:
    """Yields id and value of each resource."""
    at = 0
    while len(head := region.read(7, at)) == 7 and head[:4] in _RESOURCE_KINDS:
        region.copy.step()
        at += 6 + (1 + head[6] + 1) // 2 * 2  # the name, which has an even length with its length byte
        size = region.read(4, at)
        value = region.part(at + 4, int.from_bytes(size))
        yield int.from_bytes(head[4:6]), value
        at += 4 + (value.size + 1) // 2 * 2


def blank_iptc(region: Region) -> None:
    """Overwrites the values of locations with spaces (IPTC-IIM 4.2, 1.5)."""
    data, at = region.read_all(), 0
    while at + 5 <= len(data) and data[at] == _IPTC_START:
        region.copy.step()
        record, number, size = data[at + 1], data[at + 2], int.from_bytes(data[at + 3 : at + 5])
        at += 5
        if size & 0x8000:  # an extended data set: these are the bytes of the size
            bytes_of_size = size & 0x7FFF
            if bytes_of_size > 8:
                return
            size = int.from_bytes(data[at : at + bytes_of_size])
            at += bytes_of_size
        if record == 2 and number in _IPTC_LOCATIONS:
            region.fill(at, size, b" ")
        at += size


def blank_any(region: Region) -> None:
    """Blanks a block whose kind is detected by its first bytes."""
    head = region.read(len(XMP_HEAD), 0)
    if head.startswith((EXIF_HEAD, *LAYOUTS)):
        blank_exif(region)
    elif head[:4] in _RESOURCE_KINDS:
        blank_resources(region)
    elif head[:1] == bytes([_IPTC_START]):
        blank_iptc(region)
    else:
        blank_xmp(region)


def contains_location(block: bytes) -> bool:
    copy = Copy(bytearray(block))
    with suppress(Unreadable):
        blank_any(copy.region((0, copy.size)))
    return copy.changes > 0


def _blank_iptc_of_tiff(region: Region) -> None:
    """Some programs store IPTC as 32-bit numbers with swapped bytes. Such a block is removed completely."""
    block = region.read_all()
    swapped = b"".join(block[at : at + 4][::-1] for at in range(0, len(block), 4))
    if swapped[:1] == bytes([_IPTC_START]) != block[:1]:
        if contains_location(swapped):
            region.fill(0, region.size)
    else:
        blank_iptc(region)


# Resources may have EXIF themselves, so EXIF in them is not searched for resources.
_IN_EXIF: Blankers = {_XMP_TAG: blank_xmp, _IPTC_TAG: _blank_iptc_of_tiff}
_IN_TIFF: Blankers = {**_IN_EXIF, _RESOURCES_TAG: blank_resources}
