"""Hosts with wrong clocks, under load. The servers and the file system have the correct time."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from service.ids import ImageId
from service.storage.local.originals import LocalOriginals
from tests.chaos.load import unique_picture
from tests.chaos.site import Clocks, Site, run_site
from tests.support.clocks import wrong_clock
from tests.support.raw_http import upload_head
from tests.support.samples import jpeg
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libfaketime")

Record = Callable[[str, object], None]


async def wait_swept(site: Site) -> None:
    """Returns when the sweep of a worker has removed a file that is two hours old."""
    old = LocalOriginals(site.settings.storage_folder).incoming_path(ImageId("Old0001"))
    old.write_bytes(jpeg())
    two_hours_ago = old.stat().st_mtime - 7200
    os.utime(old, (two_hours_ago, two_hours_ago))
    await until(lambda: not old.exists(), timeout_s=40)


async def upload_during(site: Site, waiting: Awaitable[None]) -> None:
    """Sends an upload except for its last byte, waits, and asserts that the upload succeeds."""
    body = unique_picture(jpeg(3000, 2000, quality=100))
    reader, writer = await asyncio.open_connection("127.0.0.1", site.daguerre.port)
    writer.write(upload_head(site.keys[0], len(body)) + body[:-1])
    await writer.drain()
    await waiting
    writer.write(body[-1:])
    status_line = await reader.readuntil(b"\r\n")
    writer.close()
    assert re.match(rb"HTTP/1.1 20[02] ", status_line), status_line


@pytest.mark.parametrize(("api", "workers"), [("+2h", ("+90", "-1d")), ("-1d", ("+2h", "-90"))])
async def test_wrong_clocks(tmp_path: Path, record_property: Record, api: str, workers: tuple[str, str]) -> None:
    api_clock, *worker_clocks = (wrong_clock(tmp_path, offset).environment for offset in (api, *workers))
    async with run_site(tmp_path, record_property, clocks=Clocks(api_clock, worker_clocks)) as site, site.load():
        await upload_during(site, wait_swept(site))


async def test_clock_is_set_back_at_runtime(tmp_path: Path, record_property: Record) -> None:
    clock = wrong_clock(tmp_path, "+2h", moves=True)
    clocks = Clocks(clock.environment, [clock.environment] * 2)
    async with run_site(tmp_path, record_property, clocks=clocks) as site, site.load():
        clock.set("-1d")
        await upload_during(site, wait_swept(site))
