"""POST /v1/images: what comes back, and what is stored."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from tests.conftest import Client, Tenant


def jpeg(width: int = 640, height: int = 480) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((width, height), 40).convert("RGB").save(out, "JPEG", quality=80)
    return out.getvalue()


@pytest.mark.usefixtures("worker")
async def test_an_upload_answers_the_shape_of_the_contract(api: Client, tenant: Tenant) -> None:
    body = jpeg()
    response = await api.post(
        f"/v1/images?key={tenant.key}", data=body, headers={"Content-Type": "application/octet-stream"}
    )
    answer = await response.json()
    assert response.status == 200, answer
    image_id = answer["response"].pop("id")
    assert answer == {
        "success": True,
        "response": {"width": 640, "height": 480, "filesize": len(body), "tags": []},
    }
    assert len(image_id) == 7
