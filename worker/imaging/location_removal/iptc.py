"""Places in IPTC-IIM (version 4.2)."""

from __future__ import annotations

from worker.imaging.location_removal.regions import Region

# Of record 2: content location code and name, city, sublocation, province, country code and name.
_PLACES = frozenset({26, 27, 90, 92, 95, 100, 101})


def blank_iptc(region: Region) -> None:
    """The values become spaces."""
    data, at = region.read(0, region.size), 0
    while at + 5 <= len(data) and data[at] == 0x1C:
        region.copy.step()
        record, number, size = data[at + 1], data[at + 2], int.from_bytes(data[at + 3 : at + 5])
        at += 5
        if size & 0x8000:  # then the size of the size
            bytes_of_size = size & 0x7FFF
            if bytes_of_size > 8:
                return
            size = int.from_bytes(data[at : at + bytes_of_size])
            at += bytes_of_size
        if record == 2 and number in _PLACES:
            region.fill(at, size, b" ")
        at += size
