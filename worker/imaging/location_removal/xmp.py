"""Places in XMP: a packet that names one goes as a whole.

A finer cut would have to know every way in which RDF writes the same property (attribute, element, structure, under
any prefix, again in the history), and to leave XML of the same length. What is lost with the packet is its other
properties; those that matter for showing a picture are in EXIF too.
"""

from __future__ import annotations

import re

from worker.imaging.location_removal.regions import Region

# By local name, since a prefix is free: exif:GPSLatitude, drone-dji:AbsoluteAltitude, Iptc4xmpExt:LocationShown,
# xmpDM:shotLocation, photoshop:City, geo:lat, dc:coverage.
_PLACE = re.compile(
    rb"[:<](?:[\w.-]*(?:gps|latitude|longt?itude|altitude|location)"
    rb"|(?:city|state|provincestate|country(?:code|name)?|worldregion|coverage|lat|lon|long)(?![\w.-]))",
    re.IGNORECASE,
)
# Some readers fail at a packet without an element.
_EMPTY = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/></x:xmpmeta>'


def names_place(packet: bytes) -> bool:
    """Whether any property of a place is in it, in UTF-8, UTF-16 or UTF-32."""
    return _PLACE.search(packet.replace(b"\0", b"")) is not None


def blank_xmp(region: Region) -> None:
    if names_place(region.read(0, region.size)):
        empty_xmp(region)


def empty_xmp(region: Region) -> None:
    """An empty packet, or nothing but spaces where none fits."""
    region.put(0, (_EMPTY if len(_EMPTY) <= region.size else b"").ljust(region.size))
