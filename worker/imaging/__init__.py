"""Everything that touches the bytes of a picture: synchronous, and imported only inside child processes.

libvips decodes, libheif (through pi_heif) where libvips cannot. Pillow, which pi_heif needs anyway, encodes the preview
and small JPEGs; of clients' bytes it sees JPEGs, whose header we have read before, and the compressed pixels of GIFs.

What happens to a picture of one format stands in the module of its name in `formats`, and what of it tells a place in
the one in `locations`.
"""

from worker.imaging.location_removal import find_locations
from worker.imaging.preparing import prepare
from worker.imaging.probing import probe
from worker.imaging.rendering import render

__all__ = ["find_locations", "prepare", "probe", "render"]
