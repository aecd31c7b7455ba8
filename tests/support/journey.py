"""All that Daguerre does with its servers, as processes: commands, uploads, search, renditions, deletes, the sweep."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

from service.config.settings import Settings
from service.launcher.process import end_orphans
from tests.support.commands import daguerre_process
from tests.support.daguerre_processes import Daguerre, processes_of
from tests.support.samples import jpeg
from tests.support.servers import PASSWORD, QUOTED_PASSWORD

_UPLOADS = 24


def run(settings: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with these settings. Asserts that it prints no password and no traceback."""
    values = settings.model_dump(exclude_unset=True)
    environment = {f"DAGUERRE_{name.upper()}": str(value) for name, value in values.items()}
    done = daguerre_process(*words, **environment)
    assert_is_discreet(done.stdout + done.stderr)
    return done


def assert_is_discreet(text: str) -> None:
    assert PASSWORD not in text
    assert QUOTED_PASSWORD not in text
    assert "Traceback" not in text


def succeed(settings: Settings, *words: str) -> str:
    done = run(settings, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def travel(settings: Settings, logs: Path, *, lose_jobs: Callable[[], object]) -> None:
    """Goes through all of it on an empty database. `lose_jobs` deletes everything from Redis."""
    succeed(settings, "schema")
    succeed(settings, "schema")  # again, with nothing to do
    key = succeed(settings, "accounts", "create", "shop").splitlines()[-1]
    succeed(settings, "presets", "set", "shop", "thumb", "width=20&height=20&fit=cover")
    assert "shop" in succeed(settings, "accounts", "list")
    async with processes_of(settings, key, logs) as daguerre:
        _, worker = await daguerre.start()
        image_ids = await _upload_many(daguerre)
        await _use(daguerre, image_ids)
        worker.process.kill()
        worker.process.wait()
        end_orphans(worker.process)
        await _survive_lost_jobs(daguerre, lose_jobs)
        assert (await daguerre.get("/readyz")).status == 200
    for part in daguerre.parts:
        assert_is_discreet(part.log.read_text())
    assert "no problems" in run(settings, "verify").stdout
    succeed(settings, "keys", "create", "shop")
    succeed(settings, "accounts", "set", "shop", "--max-storage", "1GB")
    succeed(settings, "accounts", "suspend", "shop")
    succeed(settings, "accounts", "delete", "shop", "--yes")


async def _upload_many(daguerre: Daguerre) -> list[str]:
    bodies = [jpeg(64 + number, 48) for number in range(_UPLOADS)]
    responses = await asyncio.gather(*(daguerre.upload(body, tags="lake") for body in bodies))
    assert {response.status for response in responses} == {200}, responses
    return [response.result["id"] for response in responses]


async def _use(daguerre: Daguerre, image_ids: list[str]) -> None:
    found = await daguerre.get("/v1/images/search", tags="lake", limit="100")
    assert {image["id"] for image in found.result["images"]} == set(image_ids)
    for query in ("width=20", "preset=thumb"):
        async with daguerre.session.get(f"/i/{image_ids[0]}?{query}") as rendition:
            assert rendition.status == 200
            await rendition.read()
    headers = {"X-Api-Key": daguerre.key}
    async with daguerre.session.put(f"/v1/images/{image_ids[0]}/tags?tags=dawn", headers=headers) as tagged:
        assert tagged.status == 200, await tagged.text()
    deleted = ",".join(image_ids[:20])
    async with daguerre.session.delete(f"/v1/images/{deleted}", headers=headers) as response:
        assert response.status == 200, await response.text()
    account = await daguerre.get("/v1/account")
    assert account.result["num_images"] == _UPLOADS - 20
    async with daguerre.session.get("/metrics") as metrics:
        assert "daguerre_queue_depth" in await metrics.text()


async def _survive_lost_jobs(daguerre: Daguerre, lose_jobs: Callable[[], object]) -> None:
    """The sweep finds uploads whose jobs are lost. No worker runs before."""
    accepted = [await daguerre.upload(jpeg(100, 90 + number)) for number in range(3)]
    assert {response.status for response in accepted} == {202}
    lose_jobs()
    await daguerre.start_worker().wait_logged("worker.started")
    for response in accepted:
        assert (await daguerre.wait_processed(response.result["id"], timeout_s=40))["width"] == 100
