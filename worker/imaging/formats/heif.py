"""What HEIC and AVIF share: the boxes of the file, all of which have to be there."""

from __future__ import annotations

import os
from functools import partial

from service.probes import Rejected
from worker.imaging.containers.isobmff import HeifFile, Malformed, read_heif
from worker.imaging.formats.source import Source

# Whatever else lies behind a picture may look like a box.
_KNOWN_BOXES = frozenset({b"meta", b"mdat", b"moov", b"mpvd", b"free", b"skip", b"uuid", b"idat"})


def open_heif(source: Source) -> HeifFile:
    """The boxes of the file. Raises Rejected if a box or an item goes on behind the end of the file: decoders show what
    they have of it, in green or not at all.
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
    return file
