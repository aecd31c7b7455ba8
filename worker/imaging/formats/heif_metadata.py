"""EXIF of HEIC and AVIF, and how their decoders turn the picture."""

from __future__ import annotations

from collections.abc import Callable

from worker.imaging.containers.isobmff import HeifFile, Item

# More than any camera's EXIF, whose thumbnail and maker notes may have some 100 KB.
_MAX_EXIF_BYTES = 4_000_000

# Orientations of EXIF (CIPA DC-008, 4.6.4, tag 0x0112) as steps: whether left and right are exchanged, and then how
# many quarters the picture is turned clockwise.
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


def find_exif(file: HeifFile, read: Callable[[int, int], bytes]) -> bytes | None:
    """The block as it is in the file. libvips takes the orientation out of it, because the picture is turned.

    `read` returns up to `size` bytes (first parameter) from an offset (second).
    """
    item = _find_exif_item(file)
    if item is None:
        return None
    contents = item.read(read, _MAX_EXIF_BYTES)
    # The item says first how many bytes come before the TIFF structure (ISO/IEC 23008-12, A.2.1).
    return contents[4 + int.from_bytes(contents[:4]) :]


def _find_exif_item(file: HeifFile) -> Item | None:
    """The first one that describes the primary picture, or the first one."""
    items = [item for item in file.items.values() if item.kind == b"Exif"]
    described = (item for item in items if file.primary_id in file.references.get((b"cdsc", item.id), ()))
    return next(described, items[0] if items else None)


def applied_orientation(file: HeifFile) -> int:
    """What the properties `irot` and `imir` of the primary picture do, as an orientation of EXIF.

    Decoders apply them in the order of association (ISO/IEC 23008-12, 6.5.10 and 6.5.12), and not the orientation of
    EXIF, which says the same again for readers of EXIF alone.
    """
    mirrored, quarters = False, 0
    for kind, contents in file.primary.properties if file.primary else ():
        if kind == b"irot" and contents:
            quarters -= contents[0] & 3  # they are anticlockwise
        elif kind == b"imir" and contents:
            # Left and right exchanged, or top and bottom, which is half a turn more.
            half = 0 if contents[0] & 1 else 2
            mirrored, quarters = not mirrored, half - quarters
    return _ORIENTATIONS[mirrored, quarters % 4]
