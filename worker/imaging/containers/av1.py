"""Reads the colours in the AV1 stream itself: `color_config` of its sequence header (AV1 specification, 5.5)."""

from __future__ import annotations

from worker.imaging.containers.isobmff import Nclx

# A sequence header has 10 to 20 bytes, and only a temporal delimiter may precede it.
SEQUENCE_HEADER_BYTES = 128

_SEQUENCE_HEADER = 1
_MAX_OBUS = 8
_HAS_EXTENSION, _HAS_SIZE = 0x04, 0x02
_SRGB, _SRGB_TRANSFER, _IDENTITY = 1, 13, 0


def read_sequence_colours(data: bytes) -> Nclx | None:
    """Returns the colours of the first sequence header among the OBUs in `data`.

    Code points that the header does not name are 2, unspecified. None if there is no header, or if it has timing
    information, as videos do.
    """
    at = 0
    for _ in range(_MAX_OBUS):
        if at >= len(data):
            return None
        head = data[at]
        at += 2 if head & _HAS_EXTENSION else 1
        size, at = _read_leb128(data, at) if head & _HAS_SIZE else (len(data) - at, at)
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            return _read_header(_Bits(data[at : at + size]))
        at += size
    return None


def _read_leb128(data: bytes, at: int) -> tuple[int, int]:
    """Returns the number and the offset of its end (4.10.5)."""
    value = 0
    for place, byte in enumerate(data[at : at + 8]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    return 0, len(data)


class _Bits:
    """Reads bits from the highest to the lowest; zeros after the end."""

    def __init__(self, data: bytes) -> None:
        self._number = int.from_bytes(data)
        self._left = 8 * len(data)

    def take(self, count: int = 1) -> int:
        self._left -= count
        if self._left < 0:
            return 0
        return self._number >> self._left & ((1 << count) - 1)


def _read_header(bits: _Bits) -> Nclx | None:
    """Reads section 5.5.1; the comments have its field names."""
    profile, _, reduced = bits.take(3), bits.take(), bits.take()
    if reduced:
        bits.take(5)
    elif bits.take():  # timing_info_present_flag
        return None
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    bits.take(width_bits)
    bits.take(height_bits)
    if not reduced and bits.take():  # frame_id_numbers_present_flag
        bits.take(7)
    bits.take(3)  # use_128x128_superblock, enable_filter_intra, enable_intra_edge_filter
    if not reduced:
        _skip_tools(bits)
    bits.take(3)  # enable_superres, enable_cdef, enable_restoration
    return _read_colours(bits, profile)


def _skip_operating_points(bits: _Bits) -> None:
    delays = bits.take()  # initial_display_delay_present_flag
    for _ in range(bits.take(5) + 1):
        bits.take(12)  # operating_point_idc
        if bits.take(5) > 7:  # seq_level_idx
            bits.take()
        if delays and bits.take():
            bits.take(4)


def _skip_tools(bits: _Bits) -> None:
    bits.take(4)  # enable_interintra_compound to enable_dual_filter
    ordered = bits.take()  # enable_order_hint
    if ordered:
        bits.take(2)
    screen = 2 if bits.take() else bits.take()  # seq_force_screen_content_tools
    if screen > 0 and not bits.take():  # seq_choose_integer_mv
        bits.take()
    if ordered:
        bits.take(3)


def _read_colours(bits: _Bits, profile: int) -> Nclx:
    """Section 5.5.2."""
    deep = bits.take()
    if profile == 2 and deep:
        bits.take()
    monochrome = 0 if profile == 1 else bits.take()
    primaries, transfer, matrix = (bits.take(8), bits.take(8), bits.take(8)) if bits.take() else (2, 2, 2)
    if not monochrome and (primaries, transfer, matrix) == (_SRGB, _SRGB_TRANSFER, _IDENTITY):
        return Nclx(primaries, transfer, matrix, full_range=True)
    return Nclx(primaries, transfer, matrix, full_range=bool(bits.take()))
