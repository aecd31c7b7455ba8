"""What a decoder says about an image beside its pixels."""

from __future__ import annotations

import pyvips

from worker.imaging.colour import ICC_PROFILE


def orientation_of(image: pyvips.Image) -> int:
    return valid_orientation(image.get("orientation") if image.get_typeof("orientation") else 1)


def valid_orientation(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def pages_of(image: pyvips.Image) -> int:
    return int(image.get("n-pages")) if image.get_typeof("n-pages") else 1


def blob(image: pyvips.Image, name: str) -> bytes | None:
    return bytes(image.get(name)) if image.get_typeof(name) else None


def with_profile(image: pyvips.Image, profile: bytes | None) -> pyvips.Image:
    """The image with this ICC profile, whatever its decoder says; None means sRGB."""
    if profile is None and not image.get_typeof(ICC_PROFILE):
        return image
    image = image.copy()
    if profile is None:
        image.remove(ICC_PROFILE)
    else:
        image.set_type(pyvips.GValue.blob_type, ICC_PROFILE, profile)
    return image
