"""Runs `daguerre verify` in the process of a test, and creates rows and files for it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from service.config.settings import Settings
from service.ids import ImageId
from service.verification import report
from service.verification.context import Options
from tests.conftest import Tenant
from tests.support.samples import jpeg

ID = ImageId("AAAAAAA")
PICTURE = jpeg()


class VerifyResult(NamedTuple):
    """`is_well` is whether no unrepaired problem is left."""

    is_well: bool
    problems: list[str]
    summary: str


async def verify(
    settings: Settings,
    *,
    read: bool = True,
    repair: bool = False,
    drop_missing: bool = False,
    force: bool = False,
    expected: Mapping[ImageId, bytes] | None = None,
) -> VerifyResult:
    lines: list[str] = []
    options = Options(read=read, repair=repair, drop_missing=drop_missing, force=force)
    is_well = await report.verify(settings, options, expected or {}, write=lines.append)
    return VerifyResult(is_well, lines[:-1], lines[-1])


async def insert(
    connection: Any, tenant: Tenant, *, image_id: str = ID, state: str = "ready", age_s: float = 0
) -> None:
    """Inserts a row and adds it to the counters of its account."""
    await connection.execute(
        "insert into images (id, account_id, size, sha256, state, created_at, failed_at)"
        " values ($1, $2, $3, $4, $5, now() - $6::float8 * interval '1 s', now())",
        image_id,
        tenant.id,
        len(PICTURE),
        hashlib.sha256(PICTURE).digest(),
        state,
        age_s,
    )
    await connection.execute(
        "update accounts set used_bytes = used_bytes + $2, num_images = num_images + 1 where id = $1",
        tenant.id,
        len(PICTURE),
    )


def put(path: Path, content: bytes = PICTURE, *, age_s: float = 0) -> Path:
    """Writes a file that is `age_s` old."""
    path.write_bytes(content)
    os.utime(path, (time.time() - age_s,) * 2)
    return path
