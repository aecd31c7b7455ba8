"""Parts of multipart forms: headers and value."""

from __future__ import annotations

from tests.support.samples import jpeg

PICTURE = jpeg()


Part = tuple[str, bytes]


FILE: Part = ('name="photo"; filename="a.jpg"\r\nContent-Type: image/jpeg', PICTURE)


def field(name: str, value: str | bytes) -> Part:
    return f'name="{name}"', value if isinstance(value, bytes) else value.encode()
