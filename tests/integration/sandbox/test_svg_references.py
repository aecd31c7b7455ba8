"""An SVG fetches and reads nothing, whatever it refers to."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.support import hostile_pictures as hostile
from tests.support.decoders import Child

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="decoders get their files over Unix sockets"),
]


class Canary:
    """A server and a file that must not be opened. A pipe without a writer blocks its reader, and refuses a
    writer as long as nobody does.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.port = 0
        self.connections = 0

    def count(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.close()

    def is_read(self) -> bool:
        try:
            os.close(os.open(self.file, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True


@pytest.fixture
async def canary(tmp_path: Path) -> AsyncIterator[Canary]:
    bird = Canary(tmp_path / "canary")
    os.mkfifo(bird.file)
    async with await asyncio.start_server(bird.count, "127.0.0.1", 0) as server:
        bird.port = server.sockets[0].getsockname()[1]
        yield bird


REFERENCES: dict[str, Callable[[str], bytes]] = {
    "image": lambda to: hostile.svg(f'<image href="{to}" width="96" height="64"/>'),
    "xlink image": lambda to: hostile.svg(f'<image xlink:href="{to}" width="96" height="64"/>'),
    "svg image": lambda to: hostile.svg(f'<image href="{to}.svg" width="96" height="64"/>'),
    "use": lambda to: hostile.svg(f'<use href="{to}#a"/><use xlink:href="{to}#a"/>'),
    "filter image": lambda to: hostile.svg(
        f'<filter id="f"><feImage href="{to}"/></filter><g filter="url(#f)"><path d="M0 0h1"/></g>'
    ),
    "paint": lambda to: hostile.svg(f'<rect width="96" height="64" fill="url({to}#a) none"/>'),
    "filter": lambda to: hostile.svg(f'<rect width="0" height="64" filter="url({to}#a)" mask="url({to}#b)"/>'),
    "gradient": lambda to: hostile.svg(f'<linearGradient id="g" href="{to}#a"/><path d="M0 0" fill="url(#g)"/>'),
    "stylesheet": lambda to: hostile.svg("", before=f'<?xml-stylesheet type="text/css" href="{to}"?>'),
    "import": lambda to: hostile.svg(f'<style>@import "{to}"; @import url({to});</style>'),
    "font": lambda to: hostile.svg(
        f'<style>@font-face {{ font-family: a; src: url("{to}") }}</style><text font-family="a">&#32;</text>'
    ),
    "background": lambda to: hostile.svg(f'<g style="background: url({to}); cursor: url({to})"/>'),
    "script": lambda to: hostile.svg(
        f'<script href="{to}"/><script>fetch("{to}")</script><g onload="fetch(\'{to}\')"/>'
    ),
    "foreign object": lambda to: hostile.svg(
        '<foreignObject width="96" height="64"><html xmlns="http://www.w3.org/1999/xhtml">'
        f'<img src="{to}"/><iframe src="{to}"/><object data="{to}"/></html></foreignObject>'
    ),
    "inclusion": lambda to: hostile.svg(
        f'<text><xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="{to}" parse="text"/></text>'
        f'<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="{to}"/>'
    ),
    "entity": lambda to: hostile.svg("<text>&a;</text>", before=f'<!DOCTYPE svg [<!ENTITY a SYSTEM "{to}">]>'),
    "parameter entity": lambda to: hostile.svg("", before=f'<!DOCTYPE svg [<!ENTITY % a SYSTEM "{to}"> %a;]>'),
    "document type": lambda to: hostile.svg("", before=f'<!DOCTYPE svg SYSTEM "{to}">'),
    "base": lambda to: hostile.svg(f'<g xml:base="{to}/"><image href="x" width="9" height="9"/></g>'),
    "nested": lambda to: hostile.svg(
        "<image width='96' height='64' href=\"data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'%3E"
        f"%3Cimage href='{to}' width='9' height='9'/%3E%3C/svg%3E\"/>"
    ),
}
# The parser refuses such a document, since its reference has no target.
UNREADABLE = {"entity", "parameter entity"}


async def test_svg_fetches_and_reads_nothing(child: Child, canary: Canary) -> None:
    white = (await child.look(hostile.svg(""))).mini_preview
    links = (
        f"http://127.0.0.1:{canary.port}/canary",
        f"file://{canary.file}",
        str(canary.file),
        canary.file.name,
        f"///{canary.file}",
    )
    for name, make in REFERENCES.items():
        for link in links:
            async with asyncio.timeout(5):
                if await child.outcome(make(link)) == "accepted":
                    assert (await child.look(make(link))).mini_preview == white, (name, link)
                else:
                    assert name in UNREADABLE, link
            assert not canary.is_read(), (name, link)
    assert canary.connections == 0


async def test_canary_detects_a_reader(canary: Canary) -> None:
    assert not canary.is_read()
    reader = os.open(canary.file, os.O_RDONLY | os.O_NONBLOCK)
    assert canary.is_read()
    os.close(reader)
    _, writer = await asyncio.open_connection("127.0.0.1", canary.port)
    writer.close()
    await asyncio.sleep(0.05)
    assert canary.connections == 1
