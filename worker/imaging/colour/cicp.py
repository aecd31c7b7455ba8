"""Code points of primaries and transfer characteristics (ITU-T H.273, 8.1 and 8.2)."""

from __future__ import annotations

from worker.imaging.colour.icc import SRGB, matrix_profile, parametric
from worker.imaging.colour.matrices import colorants

# x and y of red, green, blue and white.
PRIMARIES = {
    1: SRGB,
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, 0.310, 0.316),
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, 0.3127, 0.3290),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, 0.3127, 0.3290),
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, 0.3127, 0.3290),
    8: (0.681, 0.319, 0.243, 0.692, 0.145, 0.049, 0.310, 0.316),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290),
    10: (1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1 / 3, 1 / 3),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290),
    22: (0.630, 0.340, 0.295, 0.605, 0.155, 0.077, 0.3127, 0.3290),
}

PQ, HLG = 16, 18

SRGB_CURVE = parametric(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
# Television pictures, encoded with the curves of BT.709, BT.601 or BT.2020, are displayed with the curve of TV screens.
_BT1886_CURVE = parametric(2.4)
_CURVES = {
    **dict.fromkeys((1, 6, 11, 14, 15), _BT1886_CURVE),
    4: parametric(2.2),
    5: parametric(2.8),
    7: parametric(1 / 0.45, 1 / 1.1115, 0.1115 / 1.1115, 1 / 4, 0.0912),
    8: parametric(1.0),
    13: SRGB_CURVE,
    17: parametric(2.6, (52.37 / 48) ** (1 / 2.6), 0.0, 0.0, 0.0),
}


def profile_of_code_points(primaries: int, transfer: int) -> bytes | None:
    """Returns an equivalent profile; None if the code points are unspecified, reserved or not for screens.

    A profile of HDR has the code points in its tag `cicp`, which `interpretation` reads.
    """
    if primaries not in PRIMARIES:
        return None
    to_xyz = colorants(PRIMARIES[primaries])
    if transfer in {PQ, HLG}:
        return matrix_profile(to_xyz, SRGB_CURVE, cicp=(primaries, transfer))
    return matrix_profile(to_xyz, _CURVES[transfer]) if transfer in _CURVES else None
