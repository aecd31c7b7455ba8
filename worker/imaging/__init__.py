"""Everything that decodes and encodes pictures. It is synchronous, and imported only in decoder processes.

libvips decodes most formats, libjpeg-turbo (through simplejpeg) JPEGs that are whole, and libheif (through pi_heif)
those that libvips cannot. Pillow, which pi_heif needs anyway, encodes previews and small JPEGs. Of clients' bytes it
decodes only the pixels of GIFs.

`operations` has the operations of a decoder on a file. `formats` has a module per format, which declares how to open
it; `containers` parses the structures of the formats, `location_removal` blanks the locations in them, and `rendering`
has the steps of a rendition.
"""

from worker.imaging.formats import prepare
from worker.imaging.operations import find_locations, probe, render

__all__ = ["find_locations", "prepare", "probe", "render"]
