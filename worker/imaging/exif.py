"""EXIF as a JSON object.

Our own reader and not Pillow's, which pi_heif brings along: that one gives up a directory at its first bad tag, reports
through `warnings`, and takes 0.2 ms for a camera's 40 tags where this takes 0.08.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterator

from worker.imaging.exif_tags import (
    ASCII_IN_BYTES,
    CODED_TEXT,
    EXIF_IFD,
    GPS_IFD,
    GPS_TAGS,
    IMAGE_TAGS,
    INTEROP_IFD,
    INTEROP_TAGS,
    NOT_NUMBERS,
    NUMBERS_IN_BYTES,
    PHOTO_TAGS,
    UTF16_IN_BYTES,
)

MAX_JSON_BYTES = 16_384
MAX_TEXT_CHARS = 1_000
MAX_LIST_ITEMS = 64
MAX_VALUE_BYTES = 8 + 4 * MAX_TEXT_CHARS  # a character code, and characters of 4 bytes
MAX_ENTRIES = 512  # of one directory; a camera writes about 40

Number = int | float
Value = str | Number | list[Number]
Read = Callable[[int, int], bytes]

_BYTE, _ASCII, _LONG, _RATIONAL, _UNDEFINED, _SRATIONAL, _UTF8 = 1, 2, 4, 5, 7, 10, 129
# Type to bytes and struct code; the rationals are pairs.
TYPES: dict[int, tuple[int, str]] = {
    _BYTE: (1, "B"),
    _ASCII: (1, "s"),
    3: (2, "H"),
    _LONG: (4, "I"),
    _RATIONAL: (8, "II"),
    6: (1, "b"),
    _UNDEFINED: (1, "B"),
    8: (2, "h"),
    9: (4, "i"),
    _SRATIONAL: (8, "ii"),
    11: (4, "f"),
    12: (8, "d"),
    13: (4, "I"),
    _UTF8: (1, "s"),
}
_ORIENTATION = {0x0112: "Orientation"}
_TEXT_CODES = {b"ASCII\0\0\0": "utf-8", b"UNICODE\0": "utf-16", b"JIS\0\0\0\0\0": "iso2022_jp", bytes(8): "utf-8"}


def read_exif(source: bytes | int | None) -> dict[str, object]:
    """The tags of an EXIF block, or of the first page of a TIFF file given by its descriptor.

    Names are those of the standard, in file order. Numbers are int or float (rationals are divided, to 10 digits),
    enumerations are the standard's integers, texts are trimmed, several values are a list. GPS coordinates are signed
    decimal degrees and the altitude is signed metres, as `exiftool -n` prints them; `GPSTimeStamp` is "HH:MM:SS".
    Empty texts, blobs and values that are no numbers (a denominator of 0) are left out. Fit for JSON and jsonb
    whatever the file says: no NUL, no lone surrogates, nothing infinite, at most MAX_JSON_BYTES.
    """
    if source is None:
        return {}
    if isinstance(source, int):
        return _read(lambda at, size: os.pread(source, size, at))
    return _read(_reader(source))


def read_orientation(block: bytes | None) -> object:
    """As `read_exif` finds it in an EXIF block, whatever it is; None where there is none."""
    found: dict[str, Value] = {}
    if block is not None:
        read = _reader(block)
        if (first := _first_directory(read)) is not None:
            _read_directory(read, *first, _ORIENTATION, found)
    return found.get("Orientation")


def _reader(block: bytes) -> Read:
    start = 6 if block.startswith(b"Exif\0\0") else 0
    return lambda at, size: block[start + at : start + at + size]


def _first_directory(read: Read) -> tuple[str, int] | None:
    """The byte order, and where the directory is."""
    head = read(0, 8)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
    if order is None or len(head) < 8:
        return None
    return order, pointer(order, head[4:])


def _read(read: Read) -> dict[str, object]:
    first = _first_directory(read)
    if first is None:
        return {}
    order, offset = first
    found: dict[str, Value] = {}
    # Each directory is read once and by name, so a file cannot make a loop of them.
    pointers = _read_directory(read, order, offset, IMAGE_TAGS, found)
    if EXIF_IFD in pointers:
        inner = _read_directory(read, order, pointers[EXIF_IFD], PHOTO_TAGS, found)
        if INTEROP_IFD in inner:
            _read_directory(read, order, inner[INTEROP_IFD], INTEROP_TAGS, found)
    if GPS_IFD in pointers:
        _read_directory(read, order, pointers[GPS_IFD], GPS_TAGS, found)
        _sign_gps(found)
    return _within_budget(found)


def _read_directory(
    read: Read, order: str, offset: int, names: dict[int, str], found: dict[str, Value]
) -> dict[int, int]:
    """Add the directory's values to `found`, where the first of equal tags wins. Returns its pointers."""
    pointers: dict[int, int] = {}
    for tag, kind, count, field in entries(read, order, offset):
        if tag in {EXIF_IFD, GPS_IFD, INTEROP_IFD}:
            pointers.setdefault(tag, pointer(order, field))
        name = names.get(tag)
        if name is None or name in found or kind not in TYPES or count == 0:
            continue
        size = count * TYPES[kind][0]
        # Long texts are cut and long lists dropped, so more than this need not be read.
        data = field[:size] if size <= 4 else read(pointer(order, field), min(size, MAX_VALUE_BYTES))
        value = _text(name, kind, data, order) or _numbers(name, kind, count, data, order)
        if value is not None:
            found[name] = value
    return pointers


def entries(read: Read, order: str, offset: int) -> Iterator[tuple[int, int, int, bytes]]:
    count = read(offset, 2)
    if len(count) < 2:
        return
    table = read(offset + 2, 12 * min(struct.unpack(order + "H", count)[0], MAX_ENTRIES))
    yield from struct.iter_unpack(order + "HHI4s", table[: len(table) // 12 * 12])


def pointer(order: str, field: bytes) -> int:
    return int(struct.unpack(order + "I", field)[0])


def _text(name: str, kind: int, data: bytes, order: str) -> str | None:
    """The value, if it is one of the standard's texts; None for an empty one too."""
    if kind in {_ASCII, _UTF8} or name in ASCII_IN_BYTES:
        text = _decode(data.partition(b"\0")[0])
    elif name in UTF16_IN_BYTES:
        text = data[: len(data) // 2 * 2].decode("utf-16-le", "ignore")
    elif name in CODED_TEXT:
        text = _decode_coded(data, order)
    else:
        return None
    return text.partition("\0")[0].strip()[:MAX_TEXT_CHARS] or None


def _decode(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if len(data) == MAX_VALUE_BYTES and "end of data" in error.reason:  # we cut it within a character
            return data.decode("utf-8", "ignore")
        return data.decode("cp1252", "replace")  # the standard says ASCII, cameras wrote Latin-1


def _decode_coded(data: bytes, order: str) -> str:
    """A text that names its character code in its first 8 bytes. UNICODE is UTF-16 in the order of the file."""
    encoding = _TEXT_CODES.get(data[:8])
    if encoding is None:
        return ""
    if encoding == "utf-16" and data[8:10] not in {b"\xff\xfe", b"\xfe\xff"}:
        encoding = "utf-16-le" if order == "<" else "utf-16-be"
    return data[8:].decode(encoding, "ignore")


def _numbers(name: str, kind: int, count: int, data: bytes, order: str) -> Value | None:
    unit, code = TYPES[kind]
    blob = kind == _UNDEFINED and name not in NUMBERS_IN_BYTES
    if code == "s" or blob or name in NOT_NUMBERS or count > MAX_LIST_ITEMS or len(data) < count * unit:
        return None
    numbers: tuple[Number, ...] = struct.unpack(order + code * count, data)
    if kind in {_RATIONAL, _SRATIONAL}:
        if 0 in numbers[1::2]:
            return None
        numbers = tuple(_short(n / d) for n, d in zip(numbers[::2], numbers[1::2], strict=True))
    elif not all(map(math.isfinite, numbers)):
        return None
    if name == "GPSTimeStamp":
        return _time(numbers)
    return numbers[0] if len(numbers) == 1 else list(numbers)


def _short(number: float) -> Number:
    """10 significant digits, which is what 32-bit rationals carry: 0.004 and not 0.0040000000000000001."""
    return int(number) if number.is_integer() else float(f"{number:.10g}")


def _time(parts: tuple[Number, ...]) -> str | None:
    if len(parts) != 3:
        return None
    seconds = parts[0] * 3600 + parts[1] * 60 + parts[2]
    if not 0 <= seconds < 86_400:
        return None
    whole = int(seconds)
    text = f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"
    fraction = f"{seconds - whole:.6f}".rstrip("0").rstrip(".")
    return text + fraction[1:]


def _sign_gps(found: dict[str, Value]) -> None:
    """Degrees, minutes and seconds become signed degrees; what cannot be on Earth goes."""
    for name, limit in (
        ("GPSLatitude", 90),
        ("GPSLongitude", 180),
        ("GPSDestLatitude", 90),
        ("GPSDestLongitude", 180),
    ):
        parts = found.pop(name, None)
        if isinstance(parts, int | float):
            parts = [parts]
        if not isinstance(parts, list) or len(parts) > 3:
            continue
        degrees = sum(part / 60**i for i, part in enumerate(parts))
        if abs(degrees) <= limit:
            south_or_west = str(found.get(f"{name}Ref", "")).upper().startswith(("S", "W"))
            found[name] = round(-degrees if south_or_west else degrees, 10)
    altitude = found.get("GPSAltitude")
    if isinstance(altitude, int | float) and found.get("GPSAltitudeRef") in (1, 3):
        found["GPSAltitude"] = -altitude


def _within_budget(found: dict[str, Value]) -> dict[str, object]:
    left = MAX_JSON_BYTES - 2
    kept: dict[str, object] = {}
    for name, value in found.items():
        left -= len(name) + 6 + (len(json.dumps(value)) if isinstance(value, str) else len(str(value)))
        if left < 0:
            break
        kept[name] = value
    return kept
