"""CMYK without a profile of its inks."""

from __future__ import annotations

import pyvips

from worker.imaging.colour.interpretation import ICC_PROFILE, interpret


def mix_unknown_inks(image: pyvips.Image) -> pyvips.Image:
    """Returns RGB for a CMYK JPEG without a CMYK profile, as browsers show it: each ink takes its share of the light.

    Returns any other image unchanged. 255 is a full ink.
    """
    if image.interpretation != "cmyk" or image.bands != 4:
        return image
    has_profile = image.get_typeof(ICC_PROFILE) != 0
    meaning = interpret(bytes(image.get(ICC_PROFILE))) if has_profile else None
    if meaning is not None and meaning.space == b"CMYK":
        return image
    light = 255 - image
    rgb = light.extract_band(0, n=3) * light.extract_band(3) / 255
    rgb = rgb.rint().cast("uchar").copy(interpretation="srgb")
    if has_profile:  # one that is not of inks, and not of these colours either
        rgb.remove(ICC_PROFILE)
    return rgb
