"""Uploads through real processes, which are killed or suspended, or whose storage hangs, during the upload.

In each test the image becomes ready, or the client gets an error and nothing of the upload is left.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import signal
import sys
import time
from pathlib import Path

import aiohttp
import pytest
from PIL import Image

from service.queue.connection import Redis
from service.queue.jobs import PROBE_QUEUE
from tests.support.daguerre_processes import Daguerre, Response, stop_process, suspend_decoder
from tests.support.processes import is_alive
from tests.support.raw_http import upload_head
from tests.support.samples import jpeg, slow_svg, stored_files
from tests.support.stored_state import StoredState
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

# Takes a decoder half a second, so that a test can suspend it meanwhile.
SLOW = slow_svg(10)
# Takes longer than any time limit here.
ENDLESS = slow_svg(1000)


async def test_upload_returns_the_result_of_the_probe(daguerre: Daguerre, stored: StoredState) -> None:
    await daguerre.start()
    body = jpeg(300, 200, exif={0x010F: "Daguerre", 0x0112: 6})
    flags = {"with_exif": "1", "verbose": "1", "with_mini_preview": "1", "with_account": "1"}
    response = await daguerre.upload(body, tags="dog,pet", **flags)
    assert response.status == 200
    image_id = response.result["id"]
    assert (response.result["width"], response.result["height"]) == (200, 300)
    assert response.result["exif"] == {"Make": "Daguerre", "Orientation": 6}
    assert response.result["tags"] == ["dog", "pet"]
    preview = Image.open(io.BytesIO(base64.b64decode(response.result["mini_preview"])))
    assert preview.format == "JPEG"
    assert preview.height > preview.width
    assert response.result["account"]["num_images"] == 1
    assert response.result["account"]["storage"]["used"] == len(body)

    assert (await daguerre.show(image_id, **flags)).body == response.body
    await stored.assert_holds({image_id: body})
    assert stored.path(image_id).read_bytes() == body


async def test_reply_wakes_the_request(daguerre: Daguerre) -> None:
    await daguerre.start()
    responses = [await daguerre.upload(jpeg()) for _ in range(5)]
    assert {response.status for response in responses} == {200}
    # Without a wake-up or a reply the queue and the row are only polled once a second.
    assert min(response.seconds for response in responses) < 0.75


@pytest.mark.settings(wait_s=15)
async def test_running_worker_takes_over_a_job(daguerre: Daguerre, stored: StoredState) -> None:
    _, worker = await daguerre.start()
    uploading = asyncio.create_task(daguerre.upload(SLOW))
    decoder = await suspend_decoder(worker, await stored.wait_stored())
    await daguerre.start_worker().wait_logged("worker.started")

    worker.send(signal.SIGKILL)
    killed_at = time.monotonic()
    await until(lambda: not is_alive(decoder), timeout_s=2)
    response = await uploading
    assert time.monotonic() - killed_at < 10
    assert response.status == 200
    assert (response.result["width"], response.result["height"]) == (380, 290)
    await stored.assert_holds({response.result["id"]: SLOW})
    assert await stored.connection.fetchval("select crashes from images") == 0


@pytest.mark.settings(wait_s=1)
async def test_new_worker_takes_over_a_job(daguerre: Daguerre, stored: StoredState) -> None:
    _, worker = await daguerre.start()
    uploading = asyncio.create_task(daguerre.upload(SLOW))
    decoder = await suspend_decoder(worker, await stored.wait_stored())

    worker.send(signal.SIGKILL)
    await until(lambda: not is_alive(decoder), timeout_s=2)
    daguerre.start_worker()
    response = await uploading
    assert response.status == 202
    assert response.result["status"] == "processing"
    image = await daguerre.wait_processed(response.result["id"], timeout_s=30)
    assert (image["width"], image["height"]) == (380, 290)
    await stored.assert_holds({response.result["id"]: SLOW})


@pytest.mark.settings(wait_s=15)
async def test_picture_of_a_killed_decoder_is_retried(daguerre: Daguerre, stored: StoredState) -> None:
    _, worker = await daguerre.start()
    uploading = asyncio.create_task(daguerre.upload(SLOW))
    os.kill(await suspend_decoder(worker, await stored.wait_stored()), signal.SIGKILL)
    response = await uploading
    assert response.status == 200
    assert response.result["width"] == 380
    await stored.assert_holds({response.result["id"]: SLOW})
    assert await stored.connection.fetchval("select crashes from images") == 1


@pytest.mark.settings(wait_s=15)
async def test_picture_that_kills_two_decoders_is_refused(daguerre: Daguerre, stored: StoredState) -> None:
    _, worker = await daguerre.start()
    uploading = asyncio.create_task(daguerre.upload(SLOW))
    picture = await stored.wait_stored()
    for _ in range(2):
        os.kill(await suspend_decoder(worker, picture), signal.SIGKILL)
    await assert_refused(await uploading, daguerre, stored)


@pytest.mark.settings(probe_processes=1, probe_timeout_s=1, wait_s=15)
async def test_probe_that_hangs_once_is_retried(daguerre: Daguerre, stored: StoredState, tmp_path: Path) -> None:
    _, worker = await daguerre.start()
    decoders = worker.decoders()
    stop_process(worker.pid)
    uploading = asyncio.create_task(daguerre.upload(jpeg()))
    picture = await stored.wait_stored()
    good = picture.rename(tmp_path / "good")
    picture.write_bytes(ENDLESS)
    os.kill(worker.pid, signal.SIGCONT)
    await until(lambda: not all(is_alive(decoder) for decoder in decoders))
    good.replace(picture)
    response = await uploading
    assert response.status == 200
    assert response.result["width"] == 64
    await stored.assert_holds({response.result["id"]: jpeg()})
    assert await stored.connection.fetchval("select crashes from images") == 1


@pytest.mark.settings(probe_processes=1, probe_timeout_s=1, wait_s=15)
async def test_probe_that_hangs_twice_is_refused(daguerre: Daguerre, stored: StoredState) -> None:
    _, worker = await daguerre.start()
    decoders = worker.decoders()
    uploading = asyncio.create_task(daguerre.upload(ENDLESS))
    picture = await stored.wait_stored()
    await until(lambda: not all(is_alive(decoder) for decoder in decoders))
    hanging = await suspend_decoder(worker, picture)
    os.kill(hanging, signal.SIGCONT)
    await assert_refused(await uploading, daguerre, stored)
    assert not is_alive(hanging)


@pytest.mark.settings(probe_processes=1, probe_timeout_s=1, wait_s=20, storage_disk="remote")
async def test_hanging_storage_does_not_blame_the_picture(
    daguerre: Daguerre, stored: StoredState, tmp_path: Path
) -> None:
    _, worker = await daguerre.start()
    stop_process(worker.pid)
    uploading = asyncio.create_task(daguerre.upload(jpeg()))
    picture = await stored.wait_stored()
    good = picture.rename(tmp_path / "good")
    os.mkfifo(picture)  # it exists, but opening it hangs
    os.kill(worker.pid, signal.SIGCONT)
    await until(lambda: worker.log.read_text().count("its file does not open") >= 3)
    good.replace(picture)
    response = await uploading
    assert response.status == 200
    await stored.assert_holds({response.result["id"]: jpeg()})
    assert await stored.connection.fetchval("select crashes from images") == 0


async def assert_refused(response: Response, daguerre: Daguerre, stored: StoredState) -> None:
    """Asserts that the upload was refused, that nothing of it is left after the sweep, and that the worker works."""
    assert (response.status, response.code) == (422, "probe-failed")
    await stored.sweep_after(31)
    await stored.assert_holds({})
    next_upload = await daguerre.upload(jpeg())
    assert next_upload.status == 200
    await stored.assert_holds({next_upload.result["id"]: jpeg()})


async def test_kill_during_a_body_leaves_one_file(daguerre: Daguerre, stored: StoredState) -> None:
    api, _ = await daguerre.start()
    first = await daguerre.upload(jpeg(65, 48))  # the sweep removes no file while the database has no image
    bodies = {first.result["id"]: jpeg(65, 48)}
    reader, writer = await asyncio.open_connection(*daguerre.listener.getsockname())
    body = jpeg(2400, 1600, quality=95)
    writer.write(upload_head(daguerre.key, len(body)) + body[:600_000])
    incoming = stored.settings.storage_folder / "incoming"
    await until(lambda: any(path.stat().st_size for path in incoming.iterdir()))

    api.send(signal.SIGKILL)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
        await reader.readexactly(1)
    writer.close()
    await stored.sweep_after(3500)
    assert len(stored_files(stored.settings)) == 2
    await stored.sweep_after(101)
    await stored.assert_holds(bodies)

    daguerre.start_api()
    await daguerre.wait_ready()
    again = await daguerre.upload(jpeg())
    assert again.status == 200
    await stored.assert_holds(bodies | {again.result["id"]: jpeg()})


@pytest.mark.parametrize("job", ["is queued", "is lost"])
async def test_kill_after_the_commit_loses_no_image(
    daguerre: Daguerre, stored: StoredState, redis: Redis, job: str
) -> None:
    api = daguerre.start_api()
    await api.wait_logged("api.listening")
    await daguerre.wait_unavailable("worker")
    uploading = asyncio.create_task(daguerre.upload(jpeg()))
    image_id = await stored.wait_row()
    if job == "is queued":
        await until(lambda: redis.zscore(PROBE_QUEUE, image_id))
    api.send(signal.SIGKILL)
    with pytest.raises(aiohttp.ClientConnectionError):
        await uploading
    if job == "is lost":
        await redis.flushall()
        await stored.sweep_after(11)

    await daguerre.start()
    assert (await daguerre.wait_processed(image_id))["width"] == 64
    await stored.assert_holds({image_id: jpeg()})
