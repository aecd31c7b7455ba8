"""What HEIC and AVIF share: the boxes of the file, all of which have to be there."""

from __future__ import annotations

import os
from functools import partial

from service.images.probe import Rejected
from worker.imaging.containers.isobmff import HeifFile, Malformed, read_heif
from worker.imaging.formats.source import Source
from worker.imaging.kinds import CODECS

# An overlay of a grid of turned tiles.
_MAX_DERIVATIONS = 4
# Whatever else lies behind a picture may look like a box.
_KNOWN_BOXES = frozenset({b"meta", b"mdat", b"moov", b"mpvd", b"uuid"})


def open_heif(source: Source, form: str, codec: bytes) -> HeifFile:
    """The boxes of the file, whose picture is of this type of item. Raises Rejected if it is of another one, and if a
    box or an item goes on behind the end of the file: decoders show what they have of it, in green or not at all.
    """
    size = os.fstat(source.fd).st_size
    try:
        file = read_heif(partial(os.pread, source.fd), size)
    except Malformed as error:
        raise Rejected("damaged-image") from error
    ends = [box.end for box in file.boxes if box.kind in _KNOWN_BOXES]
    ends += [end for item in file.items.values() for _, end in item.extents]
    if max(ends, default=0) > size:
        raise Rejected("damaged-image")
    used = _find_codec(file)
    if used is not None and used != codec:
        raise Rejected("unsupported-image", f"{form} with {CODECS[used]}")
    return file


def _find_codec(file: HeifFile) -> bytes | None:
    """The type of the item that holds the pixels of the picture, or of the first tile; None if it is not known."""
    item = file.primary
    for _ in range(_MAX_DERIVATIONS):
        if item is None or item.kind in CODECS:
            break
        parts = file.references.get((b"dimg", item.id), ())
        item = file.items.get(parts[0]) if parts else None
    return item.kind if item is not None and item.kind in CODECS else None
