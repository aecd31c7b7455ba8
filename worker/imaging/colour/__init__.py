"""Converts the stored colours of a picture to 8 bits of sRGB or grey, as browsers show them.

An ICC profile defines the colours of a picture. If a file defines them in another way (code points of AVIF and HEIC,
chunks of PNG), an equivalent profile is created, so that one function, `convert`, converts everything, for previews and
renditions. `icc` reads and writes profiles, `cicp` has the code points of H.273, `curves` and `matrices` their
mathematics; `interpretation` decides what a profile means for pixels, and `hdr` maps PQ and HLG to a standard range.
"""

from worker.imaging.colour.cicp import profile_of_code_points
from worker.imaging.colour.convert import convert, convert_untagged_cmyk, needs_conversion
from worker.imaging.colour.icc import gamma_profile, read_profile
from worker.imaging.colour.interpretation import ICC_PROFILE, is_srgb

__all__ = [
    "ICC_PROFILE",
    "convert",
    "convert_untagged_cmyk",
    "gamma_profile",
    "is_srgb",
    "needs_conversion",
    "profile_of_code_points",
    "read_profile",
]
