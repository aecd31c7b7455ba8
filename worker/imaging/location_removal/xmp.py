"""Locations in XMP: a packet that has one is emptied as a whole.

RDF can write the same property in many ways (attribute, element, structure, under any prefix, again in the history),
and a patch has to keep the length. The packet's other properties are lost; those that matter for showing a picture are
in EXIF too.
"""

from __future__ import annotations

import re

from worker.imaging.location_removal.regions import Region

# By local name, because any prefix may be used: exif:GPSLatitude, drone-dji:AbsoluteAltitude,
# Iptc4xmpExt:LocationShown, xmpDM:shotLocation, photoshop:City, geo:lat, dc:coverage.
_LOCATION = re.compile(
    rb"[:<](?:[\w.-]*(?:gps|latitude|longt?itude|altitude|location)"
    rb"|(?:city|state|provincestate|country(?:code|name)?|worldregion|coverage|lat|lon|long)(?![\w.-]))",
    re.IGNORECASE,
)
# Some readers fail if a packet has no element.
_EMPTY = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/></x:xmpmeta>'


def names_location(packet: bytes) -> bool:
    """Returns whether the packet has a property of a location. It may be in UTF-8, UTF-16 or UTF-32."""
    return _LOCATION.search(packet.replace(b"\0", b"")) is not None


def blank_xmp(region: Region) -> None:
    if names_location(region.read_all()):
        empty_xmp(region)


def empty_xmp(region: Region) -> None:
    """Writes an empty packet, or only spaces if it does not fit."""
    region.write((_EMPTY if len(_EMPTY) <= region.size else b"").ljust(region.size), 0)
