"""SVGs as Chromium 156 shows them in an `img`; sizes are its naturalWidth and naturalHeight."""

from __future__ import annotations

import base64
import gzip
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from service.images.probe import Probe, Rejected
from service.renditions.transformation import Transformation
from tests.support import hostile_pictures, pictures
from tests.support.gifs import frame, gif
from tests.support.icc_profiles import P3, SRGB_CURVE_TAG, rgb_profile
from worker import imaging
from worker.imaging.containers.svg import MAX_DOCUMENT_BYTES

Show = Callable[[bytes], Image.Image]
Refuse = Callable[[bytes], tuple[str, str | None]]

NAMESPACE = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
GREEN = (0, 128, 0, 255)


@pytest.fixture
def max_pixels() -> int:
    return 20_000_000


@pytest.fixture
def show(path: Path, probe: Callable[[bytes], Probe]) -> Show:
    """A PNG of what the probe accepted, of the size that it found."""

    def run(data: bytes) -> Image.Image:
        result = probe(data)
        whole = Transformation(format="png", quality=90)
        png = imaging.render(str(path), whole, watermark=None, max_pixels=20_000_000)
        image = Image.open(io.BytesIO(png))
        assert image.size == (result.width, result.height)
        return image.convert("RGBA")

    return run


@pytest.fixture
def refuse(probe: Callable[[bytes], Probe]) -> Refuse:
    """Returns code and kind of a refusal."""

    def run(data: bytes) -> tuple[str, str | None]:
        with pytest.raises(Rejected) as caught:
            probe(data)
        return caught.value.code, caught.value.kind

    return run


def svg(inside: str = "", attributes: str = 'width="20" height="20"', before: str = "") -> str:
    return f"{before}<svg {NAMESPACE} {attributes}>{inside}</svg>"


def square(colour: str = "green") -> str:
    return f'<rect x="-999" y="-999" width="9999" height="9999" fill="{colour}"/>'


def image_of(uri: str, name: str = "href") -> str:
    return f'<image width="20" height="20" {name}="{uri}"/>'


def green(form: str, size: tuple[int, int] = (20, 20)) -> bytes:
    options = {"lossless": True} if form == "WEBP" else {}
    return pictures.encode(form, Image.new("RGB", size, GREEN[:3]), **options)


def data_uri(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


# Its size


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ('width="40" height="20"', (40, 20)),
        ("", (300, 150)),
        ('viewBox="0 0 1000 1000"', (150, 150)),
        ('viewBox="0 0 100 400"', (38, 150)),
        ('viewBox="0 0 400 100"', (300, 75)),
        ('viewBox="-5,-5,10,20"', (75, 150)),
        ('viewBox="0 0 10"', (300, 150)),
        ('viewBox="0 0 -10 20"', (300, 150)),
        ('viewBox="0 0 10 20" preserveAspectRatio="none"', (300, 150)),
        ('width="100%" height="100%" viewBox="0 0 100 400"', (38, 150)),
        ('width="50%" height="50%"', (300, 150)),
        ('width="auto" height="auto" viewBox="0 0 100 50"', (300, 150)),
        ('width="3000" viewBox="0 0 300 150"', (3000, 1500)),
        ('height="90" viewBox="0 0 300 150"', (180, 90)),
        ('width="100.5" viewBox="0 0 300 150"', (101, 50)),
        ('width="100"', (100, 150)),
        ('width="100" preserveAspectRatio="none"', (300, 150)),
        ('height="90" viewBox="0 0 10 20" preserveAspectRatio=" none slice"', (300, 150)),
        ('height="90" viewBox="0 0 10 20" preserveAspectRatio="nonesuch"', (45, 90)),
        ('height="500"', (300, 500)),
        ('width="100" height="50%" viewBox="0 0 10 20"', (100, 200)),
        ('width="10em" height="5em"', (160, 80)),
        ('width="10rem" height="5em" style="font-size:200%"', (320, 160)),
        ('width="10em" height="5em" font-size="10pt"', (133, 67)),
        ('width="10em" height="1em" font-size="large"', (180, 18)),
        ('width="10em" height="20" style="font:20px serif"', (200, 20)),
        ('width="10ex" height="10ch"', (80, 80)),
        ('width="1in" height="48pt"', (96, 64)),
        ('width="2.54cm" height="25.4mm"', (96, 96)),
        ('width="40Q" height="6pc"', (38, 96)),
        ('width="1e2" height="+20"', (100, 20)),
        ('width=" 40 " height="20PX "', (40, 20)),
        ('width="abc" height="20 px"', (300, 150)),
        ('width="10.4" height="10.6"', (10, 11)),
        ('width="40" height="20" style="width:80px;height:60px"', (40, 20)),
        ('width="40" height="20" transform="scale(2)"', (40, 20)),
    ],
)
def test_svg_size_matches_browsers(show: Show, attributes: str, size: tuple[int, int]) -> None:
    shown = show(svg(square(), attributes).encode())
    assert shown.size == size
    assert shown.getpixel((size[0] // 2, size[1] // 2)) == GREEN


def test_svg_without_size_is_refused(refuse: Refuse) -> None:
    for attributes in ('width="0" height="20"', 'width="20" height="-1"'):
        assert refuse(svg(square(), attributes).encode()) == ("damaged-image", None)


def test_svg_em_is_16_pixels(show: Show) -> None:
    shown = show(svg('<rect width="1em" height="1em" fill="green"/>').encode())
    assert (shown.getpixel((15, 15)), shown.getpixel((17, 15))) == (GREEN, (0, 0, 0, 0))


def test_svg_start_tag_with_any_text(show: Show) -> None:
    attributes = """width='20' data-x=' width="3" > ' height = "20" style='font-family:"a b"' """
    assert show(svg(square(), attributes).encode()).getpixel((10, 10)) == GREEN


# How it is recognised


@pytest.mark.parametrize(
    "before",
    [
        f"<!-- {'x' * 100_000} -->",
        f"<?xml version='1.0'?>{'<!-- a -->' * 5_000}",
        f"<?xml version='1.0'?><?a {'b' * 10_000}?>",
        f"<!DOCTYPE svg PUBLIC 'a' 'b' [<!-- ]> {'x' * 10_000} --><!ENTITY c 'd'>]>",
        " \n" * 5_000,
    ],
)
def test_svg_after_a_long_prologue(show: Show, before: str) -> None:
    assert show(svg(square(), before=before).encode()).getpixel((10, 10)) == GREEN


def test_svg_with_prefix_after_a_long_comment(show: Show) -> None:
    root = 's:svg xmlns:s="http://www.w3.org/2000/svg" width="20" height="20"'
    data = f'<!--{"x" * 9_000}--><{root}><s:rect width="20" height="20" fill="green"/></s:svg>'
    assert show(data.encode()).getpixel((10, 10)) == GREEN


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_svg_in_every_unicode_encoding(show: Show, encoding: str, declared: bool) -> None:
    before = f'<?xml version="1.0" encoding="{encoding[:6].rstrip("-")}"?>' if declared else ""
    data = svg(f"<title>é 日本</title>{square()}", before=before).encode(encoding)
    assert show(data).getpixel((10, 10)) == GREEN


@pytest.mark.parametrize("encoding", ["iso-8859-1", "windows-1251", "shift_jis", "gb18030", "koi8-r"])
def test_svg_in_a_declared_encoding(show: Show, encoding: str) -> None:
    title = {"iso-8859-1": "é", "windows-1251": "Ж", "koi8-r": "Ж"}.get(encoding, "日本")
    text = svg(f"<title>{title}</title>{square()}", before=f"<?xml version='1.0' encoding='{encoding}'?>")
    assert show(text.encode(encoding)).getpixel((10, 10)) == GREEN


@pytest.mark.parametrize("encoding", ["x-unknown", "base64", "idna", "unicode_escape", "raw-unicode-escape"])
def test_svg_in_an_unsupported_encoding_is_utf8(show: Show, encoding: str) -> None:
    text = svg(rf"<title>é \u \N</title>{square()}", before=f"<?xml version='1.0' encoding='{encoding}'?>")
    assert show(text.encode()).getpixel((10, 10)) == GREEN


def test_svg_not_in_its_encoding_is_damaged(refuse: Refuse) -> None:
    assert refuse(svg(square()).encode("utf-16")[:-1]) == ("damaged-image", None)


def test_compressed_svg_is_shown(show: Show) -> None:
    for data in (svg(square()).encode(), svg(square(), before=f"<!-- {'x' * 9_000} -->").encode("utf-16")):
        assert show(gzip.compress(data)).getpixel((10, 10)) == GREEN


def test_truncated_compressed_svg_is_damaged(refuse: Refuse) -> None:
    data = gzip.compress(svg(square() + f"<!-- {list(range(9_000))} -->").encode())
    for cut in (len(data) - 1, len(data) - 8, len(data) * 9 // 10, len(data) // 2):
        assert refuse(data[:cut]) == ("damaged-image", None)


@pytest.mark.slow
def test_compressed_svg_is_bounded(refuse: Refuse) -> None:
    bomb = gzip.compress(svg(before=f"<!-- {' ' * MAX_DOCUMENT_BYTES} -->").encode())
    assert len(bomb) < 100_000
    assert refuse(bomb)[0] in {"too-many-pixels", "unsupported-image"}
    bomb = gzip.compress(svg(" " * MAX_DOCUMENT_BYTES).encode())
    assert refuse(bomb) == ("too-many-pixels", None)


# Pictures inside


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "AVIF"])
def test_svg_shows_pictures_of_every_web_format(show: Show, form: str) -> None:
    data = svg(image_of(data_uri(green(form), f"image/{form.lower()}"))).encode()
    pixel = show(data).getpixel((10, 10))
    assert isinstance(pixel, tuple)
    assert max(abs(a - b) for a, b in zip(pixel, GREEN, strict=True)) < 4


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_svg_pictures_use_their_profiles(show: Show, form: str) -> None:
    options = {"quality": 95} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    p3 = rgb_profile(P3, SRGB_CURVE_TAG)
    picture = pictures.encode(form, Image.new("RGB", (20, 20), (200, 80, 60)), icc_profile=p3, **options)
    pixel = show(svg(image_of(data_uri(picture, f"image/{form.lower()}"))).encode()).getpixel((10, 10))
    assert isinstance(pixel, tuple)
    assert max(abs(a - b) for a, b in zip(pixel[:3], (216, 69, 50), strict=True)) < 4


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_svg_pictures_are_upright(show: Show, form: str) -> None:
    upper = Image.new("RGB", (16, 16), "blue")
    upper.paste(GREEN[:3], (0, 0, 16, 8))
    head = b"Exif\0\0" if form == "JPEG" else b""
    picture = pictures.encode(form, upper, exif=head + pictures.exif_block([(0x0112, 3, 1, b"\6\0")]))
    shown = show(svg(image_of(data_uri(picture, f"image/{form.lower()}"))).encode())
    pixels = [shown.getpixel(place) for place in ((5, 10), (15, 10))]
    assert [isinstance(pixel, tuple) and pixel[2] > pixel[1] for pixel in pixels] == [True, False]


@pytest.mark.parametrize("form", ["text", "wrapped", "references", "xlink", "quotes", "an entity", "UTF-16"])
def test_svg_webp_in_every_notation(show: Show, form: str) -> None:
    uri = data_uri(green("WEBP"), "image/webp")
    document = {
        "wrapped": svg(image_of("\n".join(uri[at : at + 40] for at in range(0, len(uri), 40)))),
        "references": svg(image_of(uri.replace("=", "&#61;").replace("/", "&#x2f;"))),
        "xlink": svg(image_of(uri, "xlink:href")),
        "quotes": svg(f"<g id='a>b'/><image id='c>'  width='20' height='20' href = '{uri}' />"),
        "an entity": svg(image_of("&a;"), before=f'<!DOCTYPE svg [<!ENTITY a "{uri}">]>'),
    }.get(form, svg(image_of(uri)))
    data = document.encode("utf-16" if form == "UTF-16" else "utf-8")
    assert show(data).getpixel((10, 10)) == GREEN


def test_svg_with_unsupported_picture_is_refused(refuse: Refuse) -> None:
    uri = data_uri(green("WEBP"), "image/webp")
    inner = data_uri(svg(image_of(uri)).encode(), "image/svg+xml")
    element = svg("&a;", before=f"<!DOCTYPE svg [<!ENTITY a '{image_of(uri)}'>]>")
    for document, kind in [
        (svg(image_of(inner)), "SVG in an SVG with a WebP picture inside"),
        (element, "SVG with a WebP picture inside an entity"),
        (svg(image_of(data_uri(green("BMP"), "image/bmp"))), "SVG with a BMP or ICO picture inside"),
    ]:
        assert refuse(document.encode()) == ("unsupported-image", kind)


def test_svg_with_damaged_picture_shows_the_rest(show: Show) -> None:
    for broken in (green("WEBP")[:-20], gif((20, 20), frame(0, 0, 20, 20))[:-20]):
        shown = show(svg(square() + image_of(data_uri(broken, "image/png"))).encode())
        assert shown.getpixel((10, 10)) == GREEN


@pytest.mark.slow
def test_svg_picture_conversion_is_bounded(refuse: Refuse) -> None:
    images = image_of(data_uri(green("GIF", (1500, 1500)), "image/gif")) * 9
    assert refuse(svg(images).encode()) == ("too-many-pixels", None)
    large = gif((20, 20), frame(0, 0, 20, 20).replace(b"\x14\0\x14\0", b"\xff\xff\xff\xff"))
    assert refuse(svg(image_of(data_uri(large, "image/gif"))).encode()) == ("too-many-pixels", None)
    small = hostile_pictures.gif(1)
    assert refuse(svg(image_of(data_uri(small, "image/gif")) * 2_600).encode()) == ("too-many-pixels", None)


@pytest.mark.slow
def test_svg_with_a_picture_of_12_mb_is_shown(show: Show) -> None:
    png = green("PNG")
    padded = png[:33] + pictures.chunk(b"teSt", bytes(9_000_000)) + png[33:]
    data = svg(image_of(data_uri(padded, "image/png"))).encode()
    assert len(data) > 12_000_000
    assert show(data).getpixel((10, 10)) == GREEN


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["<g>" * 300 + "</g>" * 300, f"<title>{'x' * 11_000_000}</title>"])
def test_svg_with_large_picture_has_other_limits(refuse: Refuse, harm: str) -> None:
    large = image_of(f"data:image/png;base64,{'A' * 12_000_000}")
    assert refuse(svg(large + harm).encode()) == ("damaged-image", None)
    entity = '<!DOCTYPE svg [<!ENTITY a "b">]>'
    assert refuse(svg(large, before=entity).encode()) == ("damaged-image", None)
