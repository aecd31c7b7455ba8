"""HEIC, decoded by pi_heif, since libvips is built without HEVC."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pi_heif
import pyvips

from service.images.probe import Rejected
from worker.imaging.colour import ICC_PROFILE
from worker.imaging.exif import read_exif
from worker.imaging.formats.format import DecodedPicture, Format, FrameSelection, Original
from worker.imaging.formats.heif import applied_orientation, open_heif
from worker.imaging.formats.heif_colours import read_heif_colours
from worker.imaging.formats.source import Source
from worker.imaging.location_removal.heif import blank_heif
from worker.imaging.small_copy import make_small_copy
from worker.imaging.vips import keep_alive, read_blob


def probe(source: Source) -> DecodedPicture:
    file = _open(source)
    return DecodedPicture(
        width=file.image.width,
        height=file.image.height,
        orientation=1,
        pages=1,
        has_alpha=file.has_alpha,
        exif=read_exif(file.info["exif"]),
        small_copy=make_small_copy(file.image, read_blob(file.image, ICC_PROFILE)),
        applied_orientation=file.applied_orientation,
    )


def open_original(source: Source, _: FrameSelection) -> Original:
    file = _open(source)
    info = file.info

    def read_xmp() -> bytes | None:
        return bytes(info["xmp"]) if info.get("xmp") else None

    return Original(file.image.width, file.image.height, lambda _: file.image, exif=info.get("exif"), read_xmp=read_xmp)


def _open(source: Source) -> _HeicFile:
    file = open_heif(source, "HEIC", b"hvc1")
    for meta in (box for box in file.boxes if box.kind == b"meta"):
        _reject_unreadable_items(os.pread(source.fd, meta.end - meta.start, meta.start))
    data = source.read_all()  # outside the `try`: an error of the disk is not damage
    try:
        heif = pi_heif.open_heif(data)
        width, height = heif.size
        source.check_size(width, height)
        pixels, mode, info = heif.data, heif.mode, heif.info
    except (ValueError, EOFError, SyntaxError, RuntimeError, OSError, IndexError) as error:
        raise Rejected("damaged-image") from error
    width, height = heif.size  # the decoded size, which a hostile header may contradict
    bands = len(mode.partition(";")[0])
    is_deep = mode.endswith(";16")
    image = pyvips.Image.new_from_memory(pixels, width, height, bands, "ushort" if is_deep else "uchar")
    keep_alive(image, heif)
    grey, colour = ("grey16", "rgb16") if is_deep else ("b-w", "srgb")
    image = read_heif_colours(source, file).apply(image.copy(interpretation=grey if bands < 3 else colour))
    return _HeicFile(image, heif.has_alpha, info, applied_orientation(file))


@dataclass(frozen=True, slots=True)
class _HeicFile:
    """A decoded HEIC. The decoder has applied rotation and mirroring by the container, `applied_orientation`."""

    image: pyvips.Image
    has_alpha: bool
    info: dict[str, Any]
    applied_orientation: int


def _reject_unreadable_items(meta: bytes) -> None:
    """Rejects a HEIF whose item types or names are not UTF-8: pi_heif 1.4 dereferences a null pointer for them.

    Searches the whole box for `infe` instead of parsing the items, because libheif may find entries that our parser
    skips. Overlapping entries are rejected too, because reading all of them would take quadratic time.
    """
    bytes_left = len(meta)
    at = meta.find(b"infe")
    while at != -1:
        size = int.from_bytes(meta[max(0, at - 4) : at], "big")
        ids = 4 if meta[at + 4 : at + 5] == b"\x03" else 2
        text = meta[at + 8 + ids + 2 : max(at, at - 4 + size)]
        bytes_left -= len(text)
        if bytes_left < 0:
            raise Rejected("damaged-image")
        try:
            text.decode()
        except UnicodeDecodeError:
            raise Rejected("damaged-image") from None
        at = meta.find(b"infe", at + 4)


FORMAT = Format("heic", (), probe, open_original, blank_heif)  # decoded by pi_heif
