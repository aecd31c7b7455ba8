"""Maps PQ and HLG (ITU-R BT.2100) to standard range: SDR white becomes white, and brighter light is clipped.

SDR white is 203 cd/m2, in HLG at a peak of 1,000 cd/m2 (ITU-R BT.2408). Chromium shows the same for a PNG whose cLLI
chunk says that nothing is brighter. Without the chunk it halves the light up to SDR white, to leave room for 1,000.
"""

from __future__ import annotations

from array import array
from functools import lru_cache
from math import exp

import pyvips

from worker.imaging.colour.cicp import PQ
from worker.imaging.colour.icc import SRGB
from worker.imaging.colour.matrices import Matrix, colorants, invert, multiply

_SDR_WHITE = 203.0
_PQ_PEAK, _HLG_PEAK = 10_000.0, 1_000.0
_HLG_SYSTEM_GAMMA = 1.2
_TO_SRGB = invert(colorants(SRGB))


def to_sdr(image: pyvips.Image, transfer: int, to_xyz: Matrix) -> pyvips.Image:
    """Returns 8-bit sRGB of an image of three bands of 8 or 16 bits."""
    light = image.maplut(_light_table(transfer, 65536 if image.format == "ushort" else 256))
    if transfer != PQ:
        brightness = light.recomb([list(to_xyz[1])])
        light *= brightness ** (_HLG_SYSTEM_GAMMA - 1)
    light *= (_PQ_PEAK if transfer == PQ else _HLG_PEAK) / _SDR_WHITE
    srgb = light.recomb([list(row) for row in multiply(_TO_SRGB, to_xyz)])
    return srgb.cast("float").copy(interpretation="scrgb").colourspace("srgb")


@lru_cache(4)
def _light_table(transfer: int, levels: int) -> pyvips.Image:
    """Returns light from 0 to 1 by stored value: of the screen in PQ, of the scene in HLG."""
    curve = _pq_light if transfer == PQ else _hlg_light
    values = array("f", (curve(level / (levels - 1)) for level in range(levels)))
    return pyvips.Image.new_from_memory(values.tobytes(), levels, 1, 1, "float")


def _pq_light(value: float) -> float:
    """BT.2100, table 4."""
    power = value ** (1 / (2523 / 32))
    return float((max(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)) ** (1 / (2610 / 16384)))


def _hlg_light(value: float) -> float:
    """BT.2100, table 5."""
    if value <= 0.5:
        return value * value / 3
    return (exp((value - 0.55991073) / 0.17883277) + 0.28466892) / 12
