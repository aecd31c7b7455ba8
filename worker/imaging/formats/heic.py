"""HEIC, decoded by pi_heif, since libvips cannot."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pi_heif
import pyvips

from service.images.probe import Rejected
from worker.imaging.colour import ICC_PROFILE
from worker.imaging.exif import read_exif
from worker.imaging.formats.fields import blob
from worker.imaging.formats.heif import open_heif
from worker.imaging.formats.heif_colours import read_heif_colours
from worker.imaging.formats.heif_metadata import applied_orientation
from worker.imaging.formats.original import Frames, Original
from worker.imaging.formats.picture import Picture
from worker.imaging.formats.source import Source
from worker.imaging.pixels import reduce


def probe(source: Source) -> Picture:
    file = _open_file(source)
    return Picture(
        width=file.image.width,
        height=file.image.height,
        orientation=1,
        pages=1,
        has_alpha=file.has_alpha,
        exif=read_exif(file.info["exif"]),
        small=reduce(file.image, blob(file.image, ICC_PROFILE)),
        applied_orientation=file.orientation,
    )


def open_original(source: Source, _: Frames) -> Original:
    file = _open_file(source)
    info = file.info

    def read_xmp() -> bytes | None:
        return bytes(info["xmp"]) if info.get("xmp") else None

    return Original(file.image.width, file.image.height, lambda _: file.image, exif=info.get("exif"), read_xmp=read_xmp)


def _open_file(source: Source) -> _HeicFile:
    file = open_heif(source, "HEIC", b"hvc1")
    for meta in (box for box in file.boxes if box.kind == b"meta"):
        _refuse_unreadable_items(os.pread(source.fd, meta.end - meta.start, meta.start))
    data = source.read_all()  # not below: an error of the disk is no damage
    try:
        heif = pi_heif.open_heif(data)
        width, height = heif.size
        source.admit(width, height)
        pixels, mode, info = heif.data, heif.mode, heif.info
    except (ValueError, EOFError, SyntaxError, RuntimeError, OSError, IndexError) as error:
        raise Rejected("damaged-image") from error
    width, height = heif.size
    bands = len(mode.partition(";")[0])
    deep = mode.endswith(";16")
    image = pyvips.Image.new_from_memory(pixels, width, height, bands, "ushort" if deep else "uchar")
    image._references.append(heif)
    grey, colour = ("grey16", "rgb16") if deep else ("b-w", "srgb")
    image = read_heif_colours(source, file).apply(image.copy(interpretation=grey if bands < 3 else colour))
    return _HeicFile(image, heif.has_alpha, info, applied_orientation(file))


@dataclass(frozen=True, slots=True)
class _HeicFile:
    """A decoded HEIC. The decoder has applied the container's rotation and mirroring, which are `orientation`."""

    image: pyvips.Image
    has_alpha: bool
    info: dict[str, Any]
    orientation: int


def _refuse_unreadable_items(meta: bytes) -> None:
    """Refuse a HEIF whose item types or names are no text, of which pi_heif 1.4 makes none, and uses it: the process
    dies.

    What looks like entries that lie on each other is refused too, or reading them would keep us busy.
    """
    left = len(meta)
    at = meta.find(b"infe")
    while at != -1:
        size = int.from_bytes(meta[max(0, at - 4) : at], "big")
        ids = 4 if meta[at + 4 : at + 5] == b"\x03" else 2
        text = meta[at + 8 + ids + 2 : max(at, at - 4 + size)]
        left -= len(text)
        if left < 0:
            raise Rejected("damaged-image")
        try:
            text.decode()
        except UnicodeDecodeError:
            raise Rejected("damaged-image") from None
        at = meta.find(b"infe", at + 4)
