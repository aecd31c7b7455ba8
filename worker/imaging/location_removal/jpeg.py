"""Places in a JPEG: EXIF and XMP in application segments 1, IPTC in segments 13."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from worker.imaging.containers.jpeg import segments
from worker.imaging.formats.jpeg import APP1, XMP_HEAD
from worker.imaging.location_removal.blocks import blank_exif, blank_resources
from worker.imaging.location_removal.regions import Copy, Region, Unreadable
from worker.imaging.location_removal.xmp import empty_xmp, names_place

_APP13 = 0xED
_MORE_XMP_HEAD = b"http://ns.adobe.com/xmp/extension/\0"
_RESOURCES_HEAD = b"Photoshop 3.0\0"
_PICTURE = b"\xff\xd8\xff"


def blank_jpeg(copy: Copy) -> None:
    """Of all pictures in the file: thumbnails, and those behind its end, which have the same metadata."""
    at = 0
    while at != -1:
        copy.step()
        _blank_picture(copy, at)
        at = copy.data.find(_PICTURE, at + 2)


@dataclass(slots=True)
class _Segments:
    """Where the contents lie. EXIF and resources may go on in the next segment."""

    exif: list[list[tuple[int, int]]] = field(default_factory=list)
    resources: list[tuple[int, int]] = field(default_factory=list)
    xmp: list[tuple[int, int]] = field(default_factory=list)
    more_xmp: list[tuple[int, int]] = field(default_factory=list)


def _blank_picture(copy: Copy, start: int) -> None:
    found = _find_metadata(copy, start)
    for pieces in found.exif:
        with suppress(Unreadable):
            blank_exif(copy.region(*pieces))
    with suppress(Unreadable):
        blank_resources(copy.region(*found.resources))
    _blank_xmp([copy.region(piece) for piece in found.xmp], [copy.region(piece) for piece in found.more_xmp])


def _find_metadata(copy: Copy, start: int) -> _Segments:
    def read(size: int, at: int) -> bytes:
        copy.spend(size)
        return copy.read(size, at)

    found = _Segments()
    for head, at, end in segments(read, start + 2):
        copy.step()
        if head[1] not in {APP1, _APP13}:
            continue
        body = copy.read(min(end - at - 4, len(_MORE_XMP_HEAD)), at + 4)
        if head[1] == _APP13:
            if body.startswith(_RESOURCES_HEAD):
                found.resources.append((at + 4 + len(_RESOURCES_HEAD), end))
        elif body.startswith(b"Exif\0"):
            if found.exif and body[6:8] not in {b"II", b"MM"}:
                found.exif[-1].append((at + 10, end))
            else:
                found.exif.append([(at + 10, end)])
        elif body.startswith(XMP_HEAD):
            found.xmp.append((at + 4 + len(XMP_HEAD), end))
        elif body.startswith(_MORE_XMP_HEAD):
            found.more_xmp.append((at + 4 + len(_MORE_XMP_HEAD), end))
    return found


def _blank_xmp(packets: list[Region], more: list[Region]) -> None:
    """What does not fit into a packet goes on in others, which it names by their digest: all of it stays or goes.

    Each of those starts with the digest in 32 letters, the length of all of them, and its offset.
    """
    ordered = sorted(more, key=lambda region: (region.read(0, 32), region.read(36, 4)))
    whole = b"".join(region.read(40, region.size) for region in ordered)
    if names_place(whole) or any(names_place(packet.read(0, packet.size)) for packet in packets):
        for packet in packets:
            empty_xmp(packet)
        for region in more:
            region.fill(0, 32, b"0")
            region.fill(40, region.size, b" ")
