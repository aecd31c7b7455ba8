"""Uploads of pictures that are to be delivered."""

from __future__ import annotations

import pytest

from tests.conftest import Client, Tenant
from tests.support import pictures
from tests.support.api import upload_image
from tests.support.delivery import Upload


@pytest.fixture
def upload(api: Client, tenant: Tenant) -> Upload:
    async def post(data: bytes | None = None, owner: Tenant = tenant) -> str:
        data = data or pictures.encode("jpeg", pictures.landscape(400, 300))
        return await upload_image(api, owner, data)

    return post


@pytest.fixture
async def image_id(upload: Upload) -> str:
    return await upload()
