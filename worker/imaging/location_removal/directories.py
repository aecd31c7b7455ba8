"""Places in the directories of a TIFF structure: that of EXIF, or a TIFF or BigTIFF file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from worker.imaging.containers.tiff import LAYOUTS, Layout
from worker.imaging.exif import TYPES
from worker.imaging.exif_tags import EXIF_IFD, GPS_IFD, INTEROP_IFD
from worker.imaging.location_removal.regions import Region, Unreadable

_SUB_IFDS = 0x014A
_DIRECTORIES = frozenset({EXIF_IFD, INTEROP_IFD, _SUB_IFDS})
# GeoTIFF 1.1: pixel scale, tie points (twice), transformation, keys and the keys' numbers and texts.
_GEO_TIFF = frozenset({0x830E, 0x8482, 0x8480, 0x85D8, 0x87AF, 0x87B0, 0x87B1})
_SIZES = {kind: size for kind, (size, _) in TYPES.items()}
# The standard ends at 0x1F.
_LAST_GPS_TAG = 0xFF
# No value of a place is longer, and what says so may reach over all of the file.
_MOST_VALUE_BYTES = 65_536

Blankers = Mapping[int, Callable[[Region], None]]


def blank_directories(region: Region, blankers: Blankers) -> None:
    """Take GPS directories and GeoTIFF tags out, with their values; `blankers` look into values of other tags.

    An entry that goes leaves no gap: those behind it move up, so that every reader finds a sound directory that never
    had it. Values stay where they are, since maker notes hold offsets of their own. In a file whose maker laid a place
    over something else on purpose, that goes as well.
    """
    head = region.read(0, 16)
    layout = LAYOUTS.get(head[:4])
    if layout is None:
        return
    pending, seen, places = [layout.first(head)], {0}, []
    while pending:
        at = pending.pop()
        if at in seen:
            continue
        seen.add(at)
        with suppress(Unreadable):
            found = _blank_directory(region, layout, at, blankers)
            pending += found.directories
            places += found.places
    for at in places:
        if at not in seen:  # what is another directory too has to stay readable
            seen.add(at)
            with suppress(Unreadable):
                _blank_places(region, layout, at)


class _Entry(NamedTuple):
    tag: int
    kind: int
    values: int
    field: bytes


class _Found(NamedTuple):
    directories: list[int]
    places: list[int]


def _entries(region: Region, layout: Layout, at: int) -> Iterator[_Entry]:
    """Those that lie in the region."""
    counted = region.number(at, layout.count, layout.order)
    start = at + layout.count
    whole = min(counted, (region.size - start) // layout.entry)
    region.copy.step(1 + whole)
    table = region.read(start, whole * layout.entry)
    yield from map(_Entry._make, layout.packed.iter_unpack(table))


def _blank_directory(region: Region, layout: Layout, at: int, blankers: Blankers) -> _Found:
    counted = region.number(at, layout.count, layout.order)
    found = _Found([], [])
    kept, gone = [], 0
    for entry in _entries(region, layout, at):
        if entry.tag == GPS_IFD:
            found.places.append(layout.offset(entry.kind, entry.field))
            gone += 1
        elif entry.tag in _GEO_TIFF:
            _blank_value(region, layout, entry)
            gone += 1
        else:
            kept.append(layout.packed.pack(*entry))
            with suppress(Unreadable):
                if entry.tag in _DIRECTORIES:
                    found.directories.extend(_offsets(region, layout, entry))
                elif entry.tag in blankers:
                    blankers[entry.tag](_outer_value(region, layout, entry))
    end = at + layout.count + (len(kept) + gone) * layout.entry
    following = region.read(end, layout.word) if len(kept) + gone == counted else b""
    if len(following) == layout.word:
        found.directories.append(layout.number(following))
    if gone:
        region.put(at, (counted - gone).to_bytes(layout.count, layout.order))
        region.put(at + layout.count, b"".join(kept) + following + bytes(gone * layout.entry))
    return found


def _outer_value(region: Region, layout: Layout, entry: _Entry) -> Region:
    """What does not fit into the entry; else nothing."""
    size = _SIZES.get(entry.kind, 0) * entry.values
    if size <= layout.word:
        return region.part(0, 0)
    return region.part(layout.number(entry.field), size)


def _offsets(region: Region, layout: Layout, entry: _Entry) -> list[int]:
    """One, or those of several sub-directories."""
    outer = _outer_value(region, layout, entry)
    if not outer.size and entry.values == 1:
        return [layout.offset(entry.kind, entry.field)]
    words, size = outer.read(0, outer.size) or entry.field, _SIZES.get(entry.kind, layout.word)
    region.copy.step(len(words) // size)
    return [layout.number(words[at : at + size]) for at in range(0, len(words), size)]


def _blank_value(region: Region, layout: Layout, entry: _Entry) -> None:
    value = _outer_value(region, layout, entry)
    value.fill(0, min(value.size, _MOST_VALUE_BYTES))


def _blank_places(region: Region, layout: Layout, at: int) -> None:
    """Nothing is left of a GPS directory but zeros. What is no tag of one stays: the pointer may have been wrong."""
    place = at + layout.count
    blanked = False
    for entry in _entries(region, layout, at):
        if entry.tag <= _LAST_GPS_TAG and entry.kind in _SIZES:
            _blank_value(region, layout, entry)
            region.fill(place, layout.entry)
            blanked = True
        place += layout.entry
    if blanked:
        region.fill(at, layout.count)
        region.fill(place, layout.word)
