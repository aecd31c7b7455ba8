"""Sends requests to the application in this process and reads its responses."""

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
    """Returns status, code and message of an error. Asserts that the response has the form of an error."""
    body = await response.json()
    assert body["success"] is False
    assert set(body) == {"success", "error"}
    assert set(body["error"]) == {"code", "message"}
    assert response.headers["Cache-Control"] == "no-store"
    return response.status, body["error"]["code"], body["error"]["message"]
