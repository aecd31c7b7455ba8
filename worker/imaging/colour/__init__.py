"""From the colours that a picture is stored in to 8 bits of sRGB or grey, as browsers show them.

A picture says what its colours are by an ICC profile. Where it says so in another way (code points of AVIF and HEIC,
chunks of PNG), a profile with the same meaning takes their place, so that one function converts everything.
`convert` does so, for previews and renditions alike; `icc` reads profiles, `cicp` has the code points of H.273 and
`profiles` writes profiles; `curves` and `matrices` are their mathematics; `interpretation` decides what a profile
means for pixels, `hdr` shows PQ and HLG on a screen of standard range, and `inks` shows CMYK without a profile.
"""

from worker.imaging.colour.cicp import profile_of_code_points
from worker.imaging.colour.convert import convert, is_foreign
from worker.imaging.colour.icc import read_profile
from worker.imaging.colour.inks import mix_unknown_inks
from worker.imaging.colour.interpretation import ICC_PROFILE
from worker.imaging.colour.profiles import gamma_profile

__all__ = [
    "ICC_PROFILE",
    "convert",
    "gamma_profile",
    "is_foreign",
    "mix_unknown_inks",
    "profile_of_code_points",
    "read_profile",
]
