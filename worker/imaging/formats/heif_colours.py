"""The colours of AVIF and HEIC: a profile or code points in the container, or code points in the AV1 stream."""

from __future__ import annotations

from dataclasses import dataclass

import pyvips

from worker.file_headers import Read, file_reader
from worker.imaging.colour import profile_of_code_points, read_profile
from worker.imaging.containers.av1 import SEQUENCE_HEADER_BYTES, read_sequence_colours
from worker.imaging.containers.isobmff import HeifFile, Item, Nclx
from worker.imaging.formats.source import Source
from worker.imaging.vips import replace_profile

# Browsers show the transfer curves of television (BT.709, BT.601, BT.2020) like that of sRGB, which cameras mean.
_TELEVISION, _SRGB_TRANSFER, _SRGB_PRIMARIES = frozenset({1, 6, 11, 12, 14, 15}), 13, 1
_UNSPECIFIED = 2
_GREY_SPACES, _COLOUR_SPACES = (b"GRAY", b"RGB "), (b"RGB ",)


@dataclass(frozen=True, slots=True)
class HeifColours:
    """`profile` has the file's colours; None means sRGB. A limited range is from 16 to 235 (of 8 bits)."""

    profile: bytes | None = None
    is_grey: bool = False
    is_limited: bool = False

    def apply(self, image: pyvips.Image) -> pyvips.Image:
        """Returns the decoded image with this profile. Grey gets one band and full range: libheif converts it to RGB in
        the stored range.
        """
        if self.is_grey:
            image = _extract_grey(image)
            image = _expand_range(image) if self.is_limited else image
        return replace_profile(image, self.profile)


def read_heif_colours(source: Source, file: HeifFile) -> HeifColours:
    """Reads the colours of the primary item or, if that is a grid without colours, those of its first tile."""
    primary = file.primary
    if primary is None:
        return HeifColours()
    tiles = file.references.get((b"dimg", primary.id), ())
    tile = file.items.get(tiles[0], primary) if tiles else primary
    is_grey = _is_monochrome(tile)
    nclx = primary.nclx or tile.nclx or _read_stream_colours(file_reader(source.fd), tile)
    is_limited = nclx is not None and not nclx.full_range
    profile = primary.icc_profile or tile.icc_profile
    if profile is not None:
        parsed = read_profile(profile)
        if parsed is not None and parsed.space in (_GREY_SPACES if is_grey else _COLOUR_SPACES):
            return HeifColours(profile, is_grey, is_limited)
    return HeifColours(None if nclx is None else _profile_of(nclx), is_grey, is_limited)


def _is_monochrome(item: Item) -> bool:
    """Returns whether the configuration of AV1 (av1C, 2.3.3) or HEVC (ISO/IEC 14496-15, 8.3.3.1) is monochrome."""
    av1, hevc = item.find_property(b"av1C") or b"", item.find_property(b"hvcC") or b""
    return bool(av1[2:3] and av1[2] & 0x10) or bool(hevc[16:17] and hevc[16] & 3 == 0)


def _read_stream_colours(read: Read, item: Item) -> Nclx | None:
    if item.kind != b"av01":
        return None
    config_obus = (item.find_property(b"av1C") or b"")[4:]
    return read_sequence_colours(config_obus or item.read(read, SEQUENCE_HEADER_BYTES))


def _profile_of(nclx: Nclx) -> bytes | None:
    transfer = _SRGB_TRANSFER if nclx.transfer in _TELEVISION | {_UNSPECIFIED} else nclx.transfer
    primaries = _SRGB_PRIMARIES if nclx.primaries == _UNSPECIFIED else nclx.primaries
    if (primaries, transfer) == (_SRGB_PRIMARIES, _SRGB_TRANSFER):
        return None
    return profile_of_code_points(primaries, transfer)


def _extract_grey(image: pyvips.Image) -> pyvips.Image:
    if image.bands < 3:
        return image
    grey = image.extract_band(0)
    if image.hasalpha():
        grey = grey.bandjoin(image.extract_band(image.bands - 1))
    return grey.copy(interpretation="grey16" if image.format == "ushort" else "b-w")


def _expand_range(image: pyvips.Image) -> pyvips.Image:
    """Expands limited to full range, in 8 bits, or in 16 bits to which deeper pictures are shifted."""
    black, white, full = (16 << 8, 235 << 8, 65535) if image.format == "ushort" else (16, 235, 255)
    factor = full / (white - black)
    alphas = image.bands - 1
    full_range = image.linear([factor] + [1.0] * alphas, [-black * factor] + [0.0] * alphas)
    return full_range.rint().cast(image.format).copy(interpretation=image.interpretation)
