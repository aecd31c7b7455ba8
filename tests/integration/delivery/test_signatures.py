"""Signed addresses of pictures, and policies that require them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from service.accounts.policies import set_policy
from service.accounts.signing_keys import create_signing_key
from service.delivery import image_cache
from service.delivery.memory_cache import MemoryCache
from service.renditions.signatures import sign
from tests.conftest import Client, Tenant
from tests.support.delivery import code, opened

pytestmark = pytest.mark.usefixtures("worker")


async def test_signature_can_be_required(api: Client, image_id: str, connection: Any, tenant: Tenant) -> None:
    secret = await create_signing_key(connection, tenant.name)
    await set_policy(connection, tenant.name, require_signature=True, strip_location=None)
    path = f"/i/{image_id}/car.jpg?width=40"
    assert await code(await api.get(path)) == "signature-required"
    assert (await opened(await api.get(sign(path, secret)))).size == (40, 30)
    assert await code(await api.get(sign(path, "wrong"))) == "signature-invalid"
    assert await code(await api.get(sign(path, secret).replace("width=40", "width=41"))) == "signature-invalid"
    assert await code(await api.get(sign(path, secret, expires=int(time.time()) - 1))) == "signature-expired"
    answer = await api.get(sign(path, secret, expires=int(time.time()) + 100))
    seconds = int(answer.headers["Cache-Control"].removeprefix("public, max-age="))
    assert 90 <= seconds <= 100


@pytest.mark.slow
async def test_signed_picture_expires_in_caches(api: Client, image_id: str, connection: Any, tenant: Tenant) -> None:
    path = sign(f"/i/{image_id}", await create_signing_key(connection, tenant.name), expires=int(time.time()) + 2)
    answer = await api.get(path)
    assert int(answer.headers["Cache-Control"].removeprefix("public, max-age=").removesuffix(", immutable")) <= 2
    async with asyncio.timeout(5):
        while (answer := await api.get(path)).status == 200:
            await asyncio.sleep(0.1)
    assert await code(answer) == "signature-expired"


async def test_cached_picture_expires_with_its_policy(
    api: Client, image_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that was found by a cached policy is not trusted longer than the policy."""
    monkeypatch.setattr(image_cache, "LOOKUP_TTL_S", 60)
    expiries: list[float] = []

    def record(_: MemoryCache, __: Any, ___: Any, *, until: float, generation: int) -> None:
        expiries.append(until)

    monkeypatch.setattr(MemoryCache, "put", record)
    for path in (f"/i/{image_id}", f"/i/{image_id}/name"):
        assert (await api.get(path)).status == 200
    assert expiries[0] == expiries[1]


async def test_changed_policy_holds_after_the_cache(
    api: Client, image_id: str, connection: Any, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_cache, "LOOKUP_TTL_S", 0.5)
    assert (await api.get(f"/i/{image_id}")).status == 200
    await set_policy(connection, tenant.name, require_signature=True, strip_location=None)
    async with asyncio.timeout(10):
        while (answer := await api.get(f"/i/{image_id}")).status == 200:
            await asyncio.sleep(0.05)
    assert await code(answer) == "signature-required"
