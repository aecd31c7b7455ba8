"""Limits on what is not signed: widths, new renditions, and guesses of ids."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.accounts.signing_keys import create_signing_key
from service.renditions.signatures import sign
from tests.conftest import Client, Tenant, resources_of
from tests.support.delivery import code, opened

pytestmark = pytest.mark.usefixtures("worker")


@pytest.mark.settings(rendition_widths="64,128")
async def test_unsigned_widths_snap_to_allowed_ones(
    api: Client, image_id: str, connection: Any, tenant: Tenant
) -> None:
    assert (await opened(await api.get(f"/i/{image_id}?width=50"))).size == (64, 48)
    assert (await opened(await api.get(f"/i/{image_id}?width=500"))).size == (128, 96)
    assert (await opened(await api.get(f"/i/{image_id}?size=100x100&fit=cover"))).size == (128, 128)
    assert (await opened(await api.get(f"/i/{image_id}?height=30"))).size == (64, 48)
    assert (await opened(await api.get(f"/i/{image_id}?size=20%25"))).size == (128, 96)
    signed = sign(f"/i/{image_id}?width=50", await create_signing_key(connection, tenant.name))
    await asyncio.sleep(0)
    resources_of(api).delivery.image_cache._policies.clear()
    assert (await opened(await api.get(signed))).size == (50, 38)


@pytest.mark.settings(rendition_rate_limit="2/h")
async def test_new_unsigned_renditions_are_limited(api: Client, image_id: str, connection: Any, tenant: Tenant) -> None:
    secret = await create_signing_key(connection, tenant.name)
    for width in (10, 20, 10):
        assert (await api.get(f"/i/{image_id}?width={width}")).status == 200
    answer = await api.get(f"/i/{image_id}?width=30")
    assert (answer.status, await code(answer)) == (429, "too-many-renditions")
    assert int(answer.headers["Retry-After"]) > 0
    assert (await api.get(f"/i/{image_id}?width=10")).status == 200
    assert (await api.get(sign(f"/i/{image_id}?width=30", secret))).status == 200


@pytest.mark.slow
@pytest.mark.settings(rendition_rate_limit="4/h", wait_s=30)
async def test_large_rendition_costs_several_tokens(api: Client, image_id: str) -> None:
    path = f"/i/{image_id}?enlarge&format=avif&height=1500&width="
    assert (await api.get(f"{path}2000")).status == 200
    assert await code(await api.get(f"{path}700")) == "too-many-renditions"


@pytest.mark.slow
@pytest.mark.settings(rendition_rate_limit="2/h", wait_s=30)
async def test_rendition_beyond_the_burst_takes_all_of_it(api: Client, image_id: str) -> None:
    assert (await api.get(f"/i/{image_id}?enlarge&format=gif&width=1000")).status == 200
    assert await code(await api.get(f"/i/{image_id}?width=10")) == "too-many-renditions"


@pytest.mark.settings(not_found_rate_limit="3/h", trusted_proxies="127.0.0.0/8")
async def test_ids_cannot_be_guessed_from_one_address(api: Client, image_id: str) -> None:
    guesser, other = {"X-Forwarded-For": "198.51.100.7"}, {"X-Forwarded-For": "198.51.100.8"}
    for number in range(3):
        assert (await api.get(f"/i/AAAAAA{number}", headers=guesser)).status == 404
    answer = await api.get("/i/AAAAAA9", headers=guesser)
    assert (answer.status, await code(answer)) == (429, "too-many-misses")
    assert (await api.get(f"/i/{image_id}", headers=guesser)).status == 429  # a right guess is not confirmed either
    assert (await api.get(f"/i/{image_id}", headers=other)).status == 200
