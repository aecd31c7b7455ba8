"""Everything that touches the bytes of a picture: synchronous, and imported only inside child processes.

libvips decodes, libheif (through pi_heif) where libvips cannot. Pillow, which pi_heif needs anyway, encodes the preview
and small JPEGs; of clients' bytes it sees JPEGs only, whose header we have read before.
"""

from worker.imaging.loaders import prepare
from worker.imaging.locations import find_locations
from worker.imaging.probing import probe
from worker.imaging.rendering import render

__all__ = ["find_locations", "prepare", "probe", "render"]
