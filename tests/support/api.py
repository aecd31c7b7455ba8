"""Requests to the application in this process, and what its responses say."""

from __future__ import annotations

from typing import Any

from service.ids import ImageId
from tests.conftest import Client, Tenant
from tests.support.samples import jpeg


async def upload_image(api: Client, tenant: Tenant, body: bytes | None = None) -> ImageId:
    """Uploads a picture, a JPEG by default, and returns its id. Fails if the response is not 200."""
    headers = tenant.headers | {"Content-Type": "image/jpeg"}
    async with api.post("/v1/images", data=jpeg() if body is None else body, headers=headers) as response:
        assert response.status == 200, await response.text()
        return ImageId((await response.json())["response"]["id"])


async def error_of(response: Any) -> tuple[int, str, str]:
    answer = await response.json()
    assert answer["success"] is False
    assert set(answer) == {"success", "error"}
    assert set(answer["error"]) == {"code", "message"}
    assert response.headers["Cache-Control"] == "no-store"
    return response.status, answer["error"]["code"], answer["error"]["message"]
