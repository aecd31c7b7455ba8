"""What HEIC and AVIF share: the boxes of the file, its EXIF, and the orientation that decoders apply."""

from __future__ import annotations

import os

from service.images.probe import Rejected
from worker.file_headers import Read, file_reader
from worker.imaging.containers.isobmff import HeifFile, Item, Malformed, read_heif
from worker.imaging.formats.source import Source
from worker.imaging.unsupported import CODECS

# E.g. an overlay of a grid of rotated tiles.
_MAX_DERIVATIONS = 4
# Other data after a picture may look like a box.
_KNOWN_BOXES = frozenset({b"meta", b"mdat", b"moov", b"mpvd", b"uuid"})
# More than the EXIF of any camera, whose thumbnail and maker notes may have some 100 KB.
_MAX_EXIF_BYTES = 4_000_000

# Orientations of EXIF (CIPA DC-008, 4.6.4, tag 0x0112) as steps: whether left and right are exchanged, and how many
# quarters the picture is turned clockwise afterwards.
_ORIENTATIONS = {
    (False, 0): 1,
    (True, 0): 2,
    (False, 2): 3,
    (True, 2): 4,
    (True, 3): 5,
    (False, 1): 6,
    (True, 1): 7,
    (False, 3): 8,
}


def open_heif(source: Source, format_name: str, codec: bytes) -> HeifFile:
    """Returns the boxes of a file whose picture is an item of the type `codec`.

    Raises Rejected if it is of another type, and if a box or an item ends beyond the file: decoders show a part of a
    truncated picture, or green.
    """
    size = os.fstat(source.fd).st_size
    try:
        file = read_heif(file_reader(source.fd), size)
    except Malformed as error:
        raise Rejected("damaged-image") from error
    ends = [box.end for box in file.boxes if box.kind in _KNOWN_BOXES]
    ends += [end for item in file.items.values() if not item.is_external for _, end in item.extents]
    if max(ends, default=0) > size:
        raise Rejected("damaged-image")
    actual = _find_codec(file)
    if actual is not None and actual != codec:
        raise Rejected("unsupported-image", f"{format_name} with {CODECS[actual]}")
    return file


def _find_codec(file: HeifFile) -> bytes | None:
    """Returns the type of the item that has the pixels of the picture, or of its first tile; None if it is unknown."""
    item = file.primary
    for _ in range(_MAX_DERIVATIONS):
        if item is None or item.kind in CODECS:
            break
        parts = file.references.get((b"dimg", item.id), ())
        item = file.items.get(parts[0]) if parts else None
    return item.kind if item is not None and item.kind in CODECS else None


def find_exif(file: HeifFile, read: Read) -> bytes | None:
    """Returns the EXIF block as it is in the file. libvips removes its orientation, since it turns the picture."""
    item = _find_exif_item(file)
    if item is None:
        return None
    contents = item.read(read, _MAX_EXIF_BYTES)
    # The first four bytes are the number of bytes before the TIFF structure (ISO/IEC 23008-12, A.2.1).
    return contents[4 + int.from_bytes(contents[:4]) :]


def _find_exif_item(file: HeifFile) -> Item | None:
    """Returns the first item that describes the primary picture, or else the first one of all."""
    items = [item for item in file.items.values() if item.kind == b"Exif"]
    described = (item for item in items if file.primary_id in file.references.get((b"cdsc", item.id), ()))
    return next(described, items[0] if items else None)


def applied_orientation(file: HeifFile) -> int:
    """Returns the orientation of the properties `irot` and `imir` of the primary picture, as an EXIF value.

    Decoders apply these in the order of association (ISO/IEC 23008-12, 6.5.10 and 6.5.12), and ignore the orientation
    of EXIF, which repeats them for readers of EXIF alone.
    """
    mirrored, quarters = False, 0
    for kind, contents in file.primary.properties if file.primary else ():
        if kind == b"irot" and contents:
            quarters -= contents[0] & 3  # `irot` counts anticlockwise
        elif kind == b"imir" and contents:
            # Exchanges left and right, or top and bottom, which is half a turn more.
            half = 0 if contents[0] & 1 else 2
            mirrored, quarters = not mirrored, half - quarters
    return _ORIENTATIONS[mirrored, quarters % 4]
