"""Locations in a JPEG: EXIF and XMP in application segments 1, IPTC in segments 13."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from worker.imaging.containers.jpeg import APP1, APP13, EXIF_HEAD, XMP_HEAD, segments
from worker.imaging.location_removal.blocks import blank_exif, blank_resources
from worker.imaging.location_removal.regions import Copy, Region, Unreadable
from worker.imaging.location_removal.xmp import empty_xmp, names_location

_EXTENDED_XMP_HEAD = b"http://ns.adobe.com/xmp/extension/\0"
_RESOURCES_HEAD = b"Photoshop 3.0\0"
_PICTURE_START = b"\xff\xd8\xff"


def blank_jpeg(copy: Copy) -> None:
    """Blanks all pictures in the file: also thumbnails and pictures after its end, which have the same metadata."""
    at = 0
    while at != -1:
        copy.step()
        _blank_picture(copy, at)
        at = copy.data.find(_PICTURE_START, at + 2)


@dataclass(slots=True)
class _Metadata:
    """Start and end of the contents of segments. A block of EXIF, and the image resources, may take several."""

    exif: list[list[tuple[int, int]]] = field(default_factory=list)
    resources: list[tuple[int, int]] = field(default_factory=list)
    xmp: list[tuple[int, int]] = field(default_factory=list)
    extended_xmp: list[tuple[int, int]] = field(default_factory=list)


def _blank_picture(copy: Copy, start: int) -> None:
    metadata = _find_metadata(copy, start)
    for pieces in metadata.exif:
        with suppress(Unreadable):
            blank_exif(copy.region(*pieces))
    with suppress(Unreadable):
        blank_resources(copy.region(*metadata.resources))
    _blank_xmp([copy.region(piece) for piece in metadata.xmp], [copy.region(piece) for piece in metadata.extended_xmp])


def _find_metadata(copy: Copy, start: int) -> _Metadata:
    def read(size: int, at: int) -> bytes:
        copy.spend(size)
        return copy.read(size, at)

    metadata = _Metadata()
    for head, at, end in segments(read, start + 2):
        copy.step()
        if head[1] not in {APP1, APP13}:
            continue
        contents = copy.read(min(end - at - 4, len(_EXTENDED_XMP_HEAD)), at + 4)
        if head[1] == APP13:
            if contents.startswith(_RESOURCES_HEAD):
                metadata.resources.append((at + 4 + len(_RESOURCES_HEAD), end))
        elif contents.startswith(EXIF_HEAD):
            if metadata.exif and contents[6:8] not in {b"II", b"MM"}:
                metadata.exif[-1].append((at + 10, end))
            else:
                metadata.exif.append([(at + 10, end)])
        elif contents.startswith(XMP_HEAD):
            metadata.xmp.append((at + 4 + len(XMP_HEAD), end))
        elif contents.startswith(_EXTENDED_XMP_HEAD):
            metadata.extended_xmp.append((at + 4 + len(_EXTENDED_XMP_HEAD), end))
    return metadata


def _blank_xmp(packets: list[Region], extended: list[Region]) -> None:
    """Empties all packets if any of them has a location.

    What does not fit into a segment continues in extended segments, which the packet refers to by their digest. Each
    starts with the digest in 32 characters, the length of all of them, and its offset (XMP specification, part 3,
    1.1.3.1).
    """
    ordered = sorted(extended, key=lambda region: (region.read(32, 0), region.read(4, 36)))
    whole = b"".join(region.read(region.size, 40) for region in ordered)
    if names_location(whole) or any(names_location(packet.read_all()) for packet in packets):
        for packet in packets:
            empty_xmp(packet)
        for region in extended:
            region.fill(0, 32, b"0")
            region.fill(40, region.size, b" ")
