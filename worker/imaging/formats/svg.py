"""SVG, drawn by librsvg in the size that is needed."""

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
from worker.imaging.colour import ICC_PROFILE, convert, is_foreign, mix_unknown_inks
from worker.imaging.containers.gif import Gif, read_gif
from worker.imaging.containers.png import chunks
from worker.imaging.formats.fields import blob, orientation_of, with_profile
from worker.imaging.formats.gif_canvas import Canvas
from worker.imaging.formats.original import Frames, Original
from worker.imaging.formats.picture import Picture, picture_of
from worker.imaging.formats.png_colours import read_png_profile
from worker.imaging.formats.source import Source, reader
from worker.imaging.formats.svg_document import START_TAG, read_root, to_utf8, unpack
from worker.imaging.formats.svg_pictures import FOREIGN, Foreign, examine
from worker.imaging.formats.svg_size import NaturalSize, natural_size
from worker.imaging.pixels import SMALL_PX

# Of pictures that are encoded anew for librsvg, all together: 1 s.
_MAX_CONVERTED_PIXELS = 25_000_000
# What each counts for beside, as it takes 1 ms; and how often those count that librsvg decodes as well, without turning
# them or converting their colours: what is too large is shown so.
_PIXELS_A_PICTURE = 10_000
_OPTIONAL_FACTOR = 2
# From here on libxml2 may refuse an attribute as too long (XML_MAX_TEXT_LENGTH is 10 MB).
_LONG_BYTES = 9_000_000
_LOADERS: dict[str, Callable[..., pyvips.Image]] = {
    "jpeg": pyvips.Image.jpegload_buffer,
    "png": pyvips.Image.pngload_buffer,
    "webp": pyvips.Image.webpload_buffer,
    "avif": pyvips.Image.heifload_buffer,
}
_FONT_DECLARED = re.compile(rb"\bfont(?:-size)?\s*:")
_NAME_END = re.compile(rb"[\s/>]")
_ATTRIBUTE = re.compile(rb"""(?<=[\s"'])([^\s=/>"'<]++)\s*+=\s*+("[^"]*+"|'[^']*+')""")


def probe(source: Source) -> Picture:
    drawing = _open_file(source)
    width, height = drawing.width, drawing.height
    scale = max(2 * SMALL_PX / max(width, height), 1 / min(width, height))
    return picture_of(drawing.load(min(scale, 1)), width, height)


def open_original(source: Source, _: Frames) -> Original:
    drawing = _open_file(source)
    return Original(drawing.width, drawing.height, drawing.load, drawing=True)


@dataclass(frozen=True, slots=True)
class _Drawing:
    """In memory: without a base address librsvg fetches nothing that the picture refers to."""

    document: bytes
    width: int
    height: int
    is_long: bool

    def load(self, scale: float) -> pyvips.Image:
        """At 96 dots an inch, as CSS has it; libvips counts them as a scale of 96/72 for all lengths."""
        return pyvips.Image.svgload_buffer(self.document, dpi=96, scale=0.75 * scale, unlimited=self.is_long)


def _open_file(source: Source) -> _Drawing:
    document = to_utf8(unpack(source.read_all()))
    root = read_root(document)
    size = natural_size(root.attributes)
    if 0 in {size.width, size.height}:
        raise Rejected("damaged-image")  # nothing to show
    source.admit(size.width, size.height)
    embedded = examine(document)
    source.admit(embedded.pixels, 1)
    edits = [
        (root.start, root.end, _sized(document[root.start : root.end], size)),
        *_conversions(document, embedded.foreign),
    ]
    document = _edited(document, edits)
    is_long = len(document) > _LONG_BYTES and embedded.is_harmless
    return _Drawing(document, size.width, size.height, is_long)


def _sized(tag: bytes, size: NaturalSize) -> bytes:
    """The start tag of the root element with its natural size in pixels, which librsvg counts otherwise: it has fonts
    of 12 pixels, and takes a size from style sheets.
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
    written = b"".join(b' %s="%s"' % (key, value.replace(b'"', b"&quot;")) for key, value in attributes.items())
    return name + written + (b"/>" if tag.endswith(b"/>") else b">")


def _conversions(document: bytes, pictures: list[Foreign]) -> Iterator[tuple[int, int, bytes]]:
    """Edits that put a PNG in the place of what librsvg does not decode, or shows otherwise than browsers.

    Damaged ones are left out, as in browsers. Raises Rejected if one that librsvg does not decode cannot be placed, or
    if all together are too large.
    """
    left = _MAX_CONVERTED_PIXELS
    for picture in pictures:
        place, is_needed = _find_value(document, picture), picture.form in FOREIGN
        if place is None and is_needed:
            raise Rejected("unsupported-image", f"SVG with a {FOREIGN[picture.form]} picture inside of an entity")
        left -= _PIXELS_A_PICTURE
        if place is None or (left < 0 and not is_needed):
            continue
        with suppress(pyvips.Error, IndexError, struct.error):
            width, height, load = _open_picture(picture)
            cost = width * height * (1 if is_needed else _OPTIONAL_FACTOR)
            if load is None or (cost > left and not is_needed):
                continue
            left -= cost
            if left < 0:
                raise Rejected("too-many-pixels")
            png = load().pngsave_buffer(compression=1, filter="sub", keep="none")
            yield (*place, b"data:image/png;base64," + base64.b64encode(png))


def _find_value(document: bytes, picture: Foreign) -> tuple[int, int] | None:
    """Where the value of the attribute lies, between its quotes."""
    tag = START_TAG.match(document, picture.tag_at)
    if tag is None:
        return None
    for match in _ATTRIBUTE.finditer(document, tag.start(), tag.end()):
        if match[1] == picture.attribute.encode():
            return match.start(2) + 1, match.end(2) - 1
    return None


def _open_picture(picture: Foreign) -> tuple[int, int, Callable[[], pyvips.Image] | None]:
    """Width, height, and what decodes its first frame, upright and in sRGB; None if librsvg shows it so itself.

    Raises pyvips.Error, IndexError or struct.error.
    """
    if picture.form == "gif":
        gif = read_gif(picture.data, max_frames=1)
        return gif.width, gif.height, partial(_decode_gif, picture.data, gif)
    image = _LOADERS[picture.form](picture.data)
    if picture.form == "png":
        read = reader(picture.data)
        image = with_profile(image, read_png_profile(chunks(read), read))
    is_turned = picture.form in {"jpeg", "png"} and orientation_of(image) != 1  # browsers turn these alone
    if picture.form in FOREIGN or is_turned or is_foreign(image, blob(image, ICC_PROFILE)):
        return image.width, image.height, partial(_as_shown, image, is_turned=is_turned)
    return image.width, image.height, None


def _as_shown(image: pyvips.Image, *, is_turned: bool) -> pyvips.Image:
    profile = blob(image, ICC_PROFILE)
    if is_foreign(image, profile):
        image = convert(mix_unknown_inks(image).copy_memory(), profile)
    return image.autorot() if is_turned else image


def _decode_gif(data: bytes, gif: Gif) -> pyvips.Image:
    try:
        return Canvas(data, gif).first()
    except Rejected as error:
        raise pyvips.Error("damaged GIF") from error


def _edited(document: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """The document with other bytes from start to end of each edit."""
    pieces, at = [], 0
    for start, end, data in sorted(edits):
        pieces += [document[at:start], data]
        at = end
    return b"".join([*pieces, document[at:]])
