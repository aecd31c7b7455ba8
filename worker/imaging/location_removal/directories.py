"""Locations in the directories of a TIFF structure: of EXIF, or of a TIFF or BigTIFF file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from worker.imaging.containers.tiff import VALUE_BYTES, Directory, Entry, Layout, read_directory, read_header
from worker.imaging.exif_tags import EXIF_IFD, GPS_IFD, INTEROP_IFD
from worker.imaging.location_removal.regions import Region, Unreadable

_SUB_IFDS = 0x014A
_DIRECTORIES = frozenset({EXIF_IFD, INTEROP_IFD, _SUB_IFDS})
# GeoTIFF 1.1: pixel scale, tie points (twice), transformation, and the keys with their numbers and texts.
_GEO_TIFF = frozenset({0x830E, 0x8482, 0x8480, 0x85D8, 0x87AF, 0x87B0, 0x87B1})
# The standard ends at 0x1F.
_MAX_GPS_TAG = 0xFF
# No value of a location is longer. A hostile one may claim to cover the file.
_MAX_VALUE_BYTES = 65_536

Blankers = Mapping[int, Callable[[Region], None]]


def blank_directories(region: Region, blankers: Blankers) -> None:
    """Removes GPS directories and GeoTIFF tags with their values; `blankers` handle the values of other tags.

    Entries after a removed one move up, so that the directory is valid for every reader. Values are not moved, because
    maker notes have their own offsets. If a file deliberately overlaps a location with other data, that is removed as
    well.
    """
    header = read_header(region.read)
    if header is None:
        return
    layout, first = header
    pending, seen, gps = [first], {0}, []
    while pending:
        at = pending.pop()
        if at in seen:
            continue
        seen.add(at)
        with suppress(Unreadable):
            pointers = _blank_directory(region, layout, at, blankers)
            pending += pointers.directories
            gps += pointers.gps
    for at in gps:
        if at not in seen:  # a GPS directory that is also another directory must stay readable
            seen.add(at)
            with suppress(Unreadable):
                _blank_gps(region, layout, at)


@dataclass(frozen=True, slots=True)
class _Pointers:
    """Offsets of directories."""

    directories: list[int] = field(default_factory=list)
    gps: list[int] = field(default_factory=list)


def _read_directory(region: Region, layout: Layout, at: int) -> Directory:
    directory = read_directory(region.read, layout, at, max_entries=region.copy.steps_left)
    region.copy.step(1 + len(directory.entries))
    return directory


def _blank_directory(region: Region, layout: Layout, at: int, blankers: Blankers) -> _Pointers:
    directory = _read_directory(region, layout, at)
    pointers = _Pointers()
    remaining: list[bytes] = []
    for entry in directory.entries:
        if entry.tag == GPS_IFD:
            pointers.gps.append(layout.pointer(entry))
        elif entry.tag in _GEO_TIFF:
            _blank_value(region, layout, entry)
        else:
            remaining.append(layout.pack(entry))
            with suppress(Unreadable):
                if entry.tag in _DIRECTORIES:
                    pointers.directories.extend(_read_offsets(region, layout, entry))
                elif entry.tag in blankers:
                    blankers[entry.tag](_outer_value(region, layout, entry))
    following = b""
    if directory.following is not None:
        pointers.directories.append(directory.following)
        following = directory.following.to_bytes(layout.offset_bytes, layout.order)
    removed = len(directory.entries) - len(remaining)
    if removed:
        region.write((directory.entry_count - removed).to_bytes(layout.count_bytes, layout.order), at)
        region.write(b"".join(remaining) + following + bytes(removed * layout.entry_bytes), directory.start)
    return pointers


def _outer_value(region: Region, layout: Layout, entry: Entry) -> Region:
    """Returns the part of the region with the value; an empty one if the value is in the entry."""
    if entry.size <= layout.offset_bytes:
        return region.part(0, 0)
    return region.part(layout.number(entry.field), entry.size)


def _read_offsets(region: Region, layout: Layout, entry: Entry) -> list[int]:
    """Returns the offset of a directory, or of several sub-directories."""
    outer = _outer_value(region, layout, entry)
    if not outer.size and entry.value_count == 1:
        return [layout.pointer(entry)]
    data, size = outer.read_all() or entry.field, VALUE_BYTES.get(entry.kind, layout.offset_bytes)
    region.copy.step(len(data) // size)
    return [layout.number(data[at : at + size]) for at in range(0, len(data), size)]


def _blank_value(region: Region, layout: Layout, entry: Entry) -> None:
    value = _outer_value(region, layout, entry)
    value.fill(0, min(value.size, _MAX_VALUE_BYTES))


def _blank_gps(region: Region, layout: Layout, at: int) -> None:
    """Overwrites a GPS directory with zeros, but no entry with another tag, because the pointer may be wrong."""
    directory = _read_directory(region, layout, at)
    end = directory.start + len(directory.entries) * layout.entry_bytes
    is_blank = False
    for entry_at, entry in zip(range(directory.start, end, layout.entry_bytes), directory.entries, strict=True):
        if entry.tag <= _MAX_GPS_TAG and entry.kind in VALUE_BYTES:
            _blank_value(region, layout, entry)
            region.fill(entry_at, layout.entry_bytes)
            is_blank = True
    if is_blank:
        region.fill(at, layout.count_bytes)
        region.fill(end, layout.offset_bytes)
