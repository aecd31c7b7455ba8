"""Everything that decodes and encodes pictures: synchronous, and imported only inside child processes.

libvips decodes, libheif (through pi_heif) what libvips cannot. Pillow, which pi_heif needs anyway, encodes the preview
and small JPEGs. Of clients' bytes it decodes JPEGs, after our reader has accepted the header, and the pixels of GIFs.

`operations` has what a child does with a file. `formats` has a module per format, which declares how to open it;
`containers` reads the structures that formats consist of, `location_removal` blanks the locations in them, and
`rendering` has the steps of a rendition.
"""

from worker.imaging.formats import prepare
from worker.imaging.operations import find_locations, probe, render

__all__ = ["find_locations", "prepare", "probe", "render"]
