"""SVG, which librsvg draws in the required size.

This build of librsvg lacks some formats, and shows other pictures inside a document without their orientation and
colours. Such pictures are replaced by PNGs first.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import pyvips

from service.images.probe import Rejected
from worker.file_headers import bytes_reader
from worker.imaging.colour import ICC_PROFILE, convert, convert_untagged_cmyk, needs_conversion
from worker.imaging.containers.gif import Gif, read_gif
from worker.imaging.containers.png import chunks
from worker.imaging.containers.svg import START_TAG, decompress, read_root, to_utf8
from worker.imaging.formats.format import DecodedPicture, Format, FrameSelection, Original, decode_picture
from worker.imaging.formats.gif_canvas import Canvas
from worker.imaging.formats.png_colours import read_png_profile
from worker.imaging.formats.source import Source
from worker.imaging.formats.svg_pictures import UNDECODED_FORMATS, EmbeddedPicture, find_pictures
from worker.imaging.formats.svg_size import NaturalSize, natural_size
from worker.imaging.location_removal.svg import blank_svg
from worker.imaging.small_copy import SMALL_PX
from worker.imaging.vips import image_orientation, read_blob, replace_profile

# The total pixels of pictures that are converted for librsvg: 1 s.
_MAX_CONVERTED_PIXELS = 25_000_000
# The cost of a picture in addition to its pixels: 1 ms.
_PIXELS_PER_PICTURE = 10_000
# The weight of a picture that librsvg can decode, without its orientation or colours. If it is too large, it is not
# converted.
_OPTIONAL_FACTOR = 2
# libxml2 may refuse a longer attribute (XML_MAX_TEXT_LENGTH is 10 MB).
_LONG_BYTES = 9_000_000
_BUFFER_LOADERS: dict[str, Callable[..., pyvips.Image]] = {
    "jpeg": pyvips.Image.jpegload_buffer,
    "png": pyvips.Image.pngload_buffer,
    "webp": pyvips.Image.webpload_buffer,
    "avif": pyvips.Image.heifload_buffer,
}
_FONT_DECLARED = re.compile(rb"\bfont(?:-size)?\s*:")
_NAME_END = re.compile(rb"[\s/>]")
_ATTRIBUTE = re.compile(rb"""(?<=[\s"'])([^\s=/>"'<]++)\s*+=\s*+("[^"]*+"|'[^']*+')""")


def probe(source: Source) -> DecodedPicture:
    drawing = _open(source)
    width, height = drawing.width, drawing.height
    scale = max(2 * SMALL_PX / max(width, height), 1 / min(width, height))
    return decode_picture(drawing.load(min(scale, 1)), width, height)


def open_original(source: Source, _: FrameSelection) -> Original:
    drawing = _open(source)
    return Original(drawing.width, drawing.height, drawing.load, is_drawing=True)


@dataclass(frozen=True, slots=True)
class _Drawing:
    """An SVG document and its size. It is in memory and has no base URL, so librsvg fetches nothing that it refers
    to.
    """

    document: bytes
    width: int
    height: int
    is_long: bool

    def load(self, scale: float) -> pyvips.Image:
        """Draws at 96 dots per inch, as in CSS. For it libvips scales all lengths by 96/72, which 0.75 compensates."""
        return pyvips.Image.svgload_buffer(self.document, dpi=96, scale=0.75 * scale, unlimited=self.is_long)


def _open(source: Source) -> _Drawing:
    document = to_utf8(decompress(source.read_all()))
    root = read_root(document)
    size = natural_size(root.attributes)
    if 0 in {size.width, size.height}:
        raise Rejected("damaged-image")  # nothing to show
    source.check_size(size.width, size.height)
    pictures = find_pictures(document)
    source.check_size(pictures.pixels, 1)
    edits = [
        (root.start, root.end, _write_size(document[root.start : root.end], size)),
        *_convert_pictures(document, pictures.to_convert),
    ]
    document = _apply_edits(document, edits)
    is_long = len(document) > _LONG_BYTES and pictures.is_harmless
    return _Drawing(document, size.width, size.height, is_long)


def _write_size(tag: bytes, size: NaturalSize) -> bytes:
    """Returns the start tag of the root element with its natural size in pixels.

    librsvg would compute another size: its default font has 12 pixels, and it uses sizes of style sheets.
    """
    attributes = {key: value[1:-1] for key, value in _ATTRIBUTE.findall(tag)}
    font = b"%.6gpx" % size.font_px
    style = attributes.get(b"style", b"").replace(b'"', b"&quot;")
    if _FONT_DECLARED.search(style):
        style += b";font-size:" + font
    attributes |= {
        b"width": b"%d" % size.width,
        b"height": b"%d" % size.height,
        b"font-size": font,
        b"style": style + b";width:%dpx !important;height:%dpx !important" % (size.width, size.height),
    }
    name, _, _ = _NAME_END.sub(b" ", tag, count=1).partition(b" ")
    text = b"".join(b' %s="%s"' % (key, value.replace(b'"', b"&quot;")) for key, value in attributes.items())
    return name + text + (b"/>" if tag.endswith(b"/>") else b">")


def _convert_pictures(document: bytes, pictures: list[EmbeddedPicture]) -> Iterator[tuple[int, int, bytes]]:
    """Yields edits that replace pictures by PNGs, if librsvg cannot decode them or shows them differently from
    browsers.

    Damaged pictures are not replaced. Raises Rejected if a picture that librsvg cannot decode cannot be replaced, or if
    all together are too large.
    """
    pixels_left = _MAX_CONVERTED_PIXELS
    for picture in pictures:
        place, is_needed = _find_value(document, picture), picture.format_name in UNDECODED_FORMATS
        if place is None and is_needed:
            name = UNDECODED_FORMATS[picture.format_name]
            raise Rejected("unsupported-image", f"SVG with a {name} picture inside an entity")
        pixels_left -= _PIXELS_PER_PICTURE
        if place is None or (pixels_left < 0 and not is_needed):
            continue
        with suppress(pyvips.Error, IndexError, struct.error):
            width, height, load = _open_picture(picture)
            cost = width * height * (1 if is_needed else _OPTIONAL_FACTOR)
            if load is None or (cost > pixels_left and not is_needed):
                continue
            pixels_left -= cost
            if pixels_left < 0:
                raise Rejected("too-many-pixels")
            png = load().pngsave_buffer(compression=1, filter="sub", keep="none")
            yield (*place, b"data:image/png;base64," + base64.b64encode(png))


def _find_value(document: bytes, picture: EmbeddedPicture) -> tuple[int, int] | None:
    """Returns start and end of the attribute's value, without its quotes."""
    tag = START_TAG.match(document, picture.tag_at)
    if tag is None:
        return None
    for match in _ATTRIBUTE.finditer(document, tag.start(), tag.end()):
        if match[1] == picture.attribute.encode():
            return match.start(2) + 1, match.end(2) - 1
    return None


def _open_picture(picture: EmbeddedPicture) -> tuple[int, int, Callable[[], pyvips.Image] | None]:
    """Returns width, height, and a function that decodes the first frame, upright and in sRGB.

    The function is None if librsvg shows the picture correctly. Raises pyvips.Error, IndexError or struct.error.
    """
    if picture.format_name == "gif":
        gif = read_gif(picture.data, max_frames=1)
        return gif.width, gif.height, partial(_decode_gif, picture.data, gif)
    image = _BUFFER_LOADERS[picture.format_name](picture.data)
    if picture.format_name == "png":
        read = bytes_reader(picture.data)
        image = replace_profile(image, read_png_profile(chunks(read), read))
    # Browsers ignore the orientation of other formats.
    is_turned = picture.format_name in {"jpeg", "png"} and image_orientation(image) != 1
    if picture.format_name in UNDECODED_FORMATS or is_turned or needs_conversion(image, read_blob(image, ICC_PROFILE)):
        return image.width, image.height, partial(_to_srgb, image, is_turned=is_turned)
    return image.width, image.height, None


def _to_srgb(image: pyvips.Image, *, is_turned: bool) -> pyvips.Image:
    profile = read_blob(image, ICC_PROFILE)
    if needs_conversion(image, profile):
        image = convert(convert_untagged_cmyk(image).copy_memory(), profile)
    return image.autorot() if is_turned else image


def _decode_gif(data: bytes, gif: Gif) -> pyvips.Image:
    try:
        return Canvas(data, gif).first()
    except Rejected as error:
        raise pyvips.Error("damaged GIF") from error


def _apply_edits(document: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """Returns the document with other bytes from start to end of each edit."""
    pieces, at = [], 0
    for start, end, data in sorted(edits):
        pieces += [document[at:start], data]
        at = end
    return b"".join([*pieces, document[at:]])


FORMAT = Format("svg", ("SvgBuffer",), probe, open_original, blank_svg)
