"""The documentation of the original API, sentence by sentence, in its order. The docstring of a test is its sentence.

Other modules test the same things in depth; this one shows that every sentence is true.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from PIL import Image

from service.api.openapi import examples
from tests.conftest import Client, NewTenant, Tenant
from tests.support.samples import jpeg

pytestmark = pytest.mark.settings(fetch_allow="127.0.0.0/8")

OCTETS = {"Content-Type": "application/octet-stream"}
PLAIN = ["id", "width", "height", "filesize", "tags"]


@dataclass(frozen=True)
class Caller:
    """A client that sends its key in the query, as in the documentation."""

    api: Client
    key: str
    picture_url: str

    async def get(self, path: str, **parameters: str) -> tuple[int, Any]:
        response = await self.api.get(f"/v1{path}", params={"key": self.key} | parameters)
        return response.status, await response.json()

    async def create(self, way: str = "file", **parameters: str) -> tuple[int, Any]:
        if way == "url":
            return await self.get("/images", url=self.picture_url, **parameters)
        response = await self.api.post("/v1/images", params={"key": self.key} | parameters, data=jpeg(), headers=OCTETS)
        return response.status, await response.json()

    async def create_id(self, **parameters: str) -> str:
        status, answer = await self.create(**parameters)
        assert status == 200, answer
        return str(answer["response"]["id"])

    async def describe(self, operation: str, **parameters: str) -> Any:
        """Returns the response of one of the operations that describe an image."""
        if operation == "show":
            status, answer = await self.get(f"/images/{await self.create_id()}", **parameters)
        else:
            status, answer = await self.create(operation, **parameters)
        assert status == 200, answer
        return answer["response"]


@pytest.fixture
def caller(api: Client, tenant: Tenant, picture_url: str) -> Caller:
    return Caller(api, tenant.key, picture_url)


in_every_operation = pytest.mark.parametrize("operation", ["url", "file", "show"])
in_both_ways = pytest.mark.parametrize("way", ["url", "file"])
with_worker = pytest.mark.usefixtures("worker")


# --- The introduction


@with_worker
async def test_introduction_all_operations_exist(caller: Caller) -> None:
    """There are operations for creating, updating, finding and deleting images."""
    image_id = await caller.create_id()
    assert (await caller.get(f"/images/{image_id}/add_tags", tags="dog"))[0] == 200
    status, answer = await caller.get("/images/search", tags="dog")
    assert status == 200
    assert [image["id"] for image in answer["response"]["images"]] == [image_id]
    assert (await caller.get(f"/images/{image_id}/delete"))[0] == 200
    assert (await caller.get(f"/images/{image_id}"))[0] == 404


async def test_introduction_openapi_can_be_downloaded(api: Client) -> None:
    """The OpenAPI specification can be downloaded."""
    response = await api.get("/openapi.json")
    assert response.status == 200
    assert (await response.json())["openapi"] == "3.1.0"


async def test_base_url_ends_in_v1(caller: Caller) -> None:
    """One base URL, ending in /v1, is used for all requests."""
    assert (await caller.get("/account"))[0] == 200
    assert (await caller.api.get("/account", params={"key": caller.key})).status == 404


# --- Authentication


@pytest.mark.parametrize(
    ("place", "value"),
    [("query", "{}"), ("X-Api-Key", "{}"), ("Authorization", "Bearer {}")],
    ids=["key", "X-Api-Key", "Authorization"],
)
async def test_authentication_accepts_each_method(api: Client, tenant: Tenant, place: str, value: str) -> None:
    """Any one of several ways to authenticate may be chosen."""
    key = value.format(tenant.key)
    response = await (
        api.get("/v1/account", params={"key": key})
        if place == "query"
        else api.get("/v1/account", headers={place: key})
    )
    assert response.status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/images?url=http://example.com/a.jpg",
        "/images/NKrigl4",
        "/images/NKrigl4/delete",
        "/images/NKrigl4/add_tags?tags=dog",
        "/images/NKrigl4/remove_tags?tags=dog",
        "/images/search",
        "/account",
    ],
)
async def test_authentication_requires_the_key(api: Client, path: str) -> None:
    """`key` is required by every operation; without it, or with an invalid one, the status is 401."""
    separator = "&" if "?" in path else "?"
    for url in (path, f"{path}{separator}key={'x' * 40}"):
        response = await api.get(f"/v1{url}")
        assert (response.status, (await response.json())["error"]["code"]) == (401, "unauthorized")


async def test_authentication_upload_requires_the_key(api: Client) -> None:
    """`key` is required by an upload too."""
    response = await api.post("/v1/images", data=jpeg(), headers=OCTETS)
    assert response.status == 401


# --- Create an image from a URL, and from a file


@with_worker
@in_both_ways
async def test_create_returns_the_documented_shape(caller: Caller, way: str) -> None:
    """200 means that the image is saved; the response has id, width, height, filesize and tags, in this order."""
    status, answer = await caller.create(way)
    assert status == 200
    assert list(answer) == list(examples.success({}))
    shown = answer["response"]
    assert list(shown) == PLAIN
    assert len(shown.pop("id")) == len(examples.image()["id"])
    assert shown == {"width": 64, "height": 48, "filesize": len(jpeg()), "tags": []}


@with_worker
@in_both_ways
async def test_create_stores_the_image(caller: Caller, way: str) -> None:
    """The image is in the hosted storage of the account from then on."""
    _, answer = await caller.create(way)
    assert await caller.get(f"/images/{answer['response']['id']}") == (200, answer)
    _, account = await caller.get("/account")
    assert account["response"]["num_images"] == 1
    assert account["response"]["storage"]["used"] == len(jpeg())


async def test_create_from_url_requires_the_url(caller: Caller) -> None:
    """`url` is required."""
    status, answer = await caller.get("/images")
    assert (status, answer["error"]["code"]) == (400, "invalid-parameter")


async def test_create_from_url_accepts_only_http(caller: Caller) -> None:
    """The source is accessible via an HTTP or HTTPS URL."""
    for url in ("ftp://example.com/a.jpg", "file:///etc/passwd", "a.jpg"):
        status, answer = await caller.get("/images", url=url)
        assert (status, answer["error"]["code"]) == (400, "invalid-url"), url


@pytest.mark.settings(fetch_allow="")
async def test_create_from_url_requires_a_public_address(caller: Caller) -> None:
    """The source is publicly accessible."""
    status, answer = await caller.get("/images", url=caller.picture_url)
    assert (status, answer["error"]["code"]) == (400, "url-not-allowed")


@with_worker
@in_both_ways
async def test_create_adds_comma_separated_tags(caller: Caller, way: str) -> None:
    """`tags` is a comma-separated list of tags to add to the image."""
    _, answer = await caller.create(way, tags="animal,dog")
    assert answer["response"]["tags"] == ["animal", "dog"]


async def test_create_from_file_requires_the_content_type(caller: Caller) -> None:
    """`Content-Type` must be set, to application/octet-stream. (An image's own type and a form will do as well.)"""
    for kind in ("application/x-www-form-urlencoded", "text/plain"):
        response = await caller.api.post(
            "/v1/images", params={"key": caller.key}, data=jpeg(), headers={"Content-Type": kind}
        )
        answer = await response.json()
        assert (response.status, answer["error"]["code"]) == (415, "unsupported-content-type")
        assert "application/octet-stream" in answer["error"]["message"]


async def test_create_from_file_requires_the_binary_body(caller: Caller) -> None:
    """The body, the binary data of the image, is required."""
    response = await caller.api.post("/v1/images", params={"key": caller.key}, headers=OCTETS)
    assert (response.status, (await response.json())["error"]["code"]) == (400, "empty-body")


# --- Optional fields, when an image is created and when it is shown


@with_worker
@in_every_operation
async def test_with_exif_adds_exif(caller: Caller, operation: str) -> None:
    """`with_exif` also returns the image's EXIF data."""
    shown = await caller.describe(operation, with_exif="true")
    assert list(shown) == [*PLAIN, "exif"]
    assert isinstance(shown["exif"], dict)


@with_worker
@in_every_operation
async def test_verbose_adds_format_and_creation_time(caller: Caller, operation: str) -> None:
    """`verbose` includes extra data, like the format and the time of creation."""
    shown = await caller.describe(operation, verbose="true")
    assert shown["format"] == "jpeg"
    assert abs(datetime.now(UTC) - datetime.fromisoformat(shown["created"])) < timedelta(minutes=1)


@with_worker
@in_every_operation
async def test_with_mini_preview_adds_a_tiny_jpeg(caller: Caller, operation: str) -> None:
    """`with_mini_preview` includes a base64 encoded tiny JPEG of about 500 bytes."""
    shown = await caller.describe(operation, with_mini_preview="true")
    assert list(shown) == [*PLAIN, "mini_preview"]
    preview = base64.b64decode(shown["mini_preview"], validate=True)
    assert len(preview) <= 500
    with Image.open(io.BytesIO(preview)) as picture:
        picture.load()
        assert picture.format == "JPEG"
        assert picture.width < 64


@with_worker
@in_every_operation
async def test_with_account_adds_the_account(caller: Caller, operation: str) -> None:
    """`with_account` also returns basic account information."""
    shown = await caller.describe(operation, with_account="true")
    assert list(shown) == [*PLAIN, "account"]
    assert shown["account"] == (await caller.get("/account"))[1]["response"]


@with_worker
async def test_optional_fields_are_absent_by_default(caller: Caller) -> None:
    """None of these parameters is required, and all of them are boolean."""
    image_id = await caller.create_id()
    for name in ("with_exif", "verbose", "with_mini_preview", "with_account"):
        _, answer = await caller.get(f"/images/{image_id}", **{name: "false"})
        assert list(answer["response"]) == PLAIN
        assert (await caller.get(f"/images/{image_id}", **{name: "perhaps"}))[0] == 400


# --- Get existing image metadata


@with_worker
async def test_show_returns_the_metadata_of_an_image(caller: Caller) -> None:
    """Retrieves the metadata of the image with this id, with 200, in the shape of the example."""
    _, created = await caller.create()
    assert await caller.get(f"/images/{created['response']['id']}") == (200, created)
    status, answer = await caller.get("/images/NKrigl4")
    assert (status, answer["error"]["code"]) == (404, "image-not-found")


# --- Delete an image


@with_worker
async def test_delete_removes_the_image(caller: Caller) -> None:
    """Deletes the image, with 200, and returns it in the shape of the example. (No cached response outlives it.)"""
    _, created = await caller.create()
    image_id = created["response"]["id"]
    assert await caller.get(f"/images/{image_id}/delete") == (200, created)
    assert (await caller.get(f"/images/{image_id}"))[0] == 404
    _, account = await caller.get("/account")
    assert account["response"]["storage"]["used"] == 0


@with_worker
async def test_delete_of_an_invalid_id_is_a_400(caller: Caller) -> None:
    """400 means that an invalid image id was supplied: one that is malformed, or unknown."""
    image_id = await caller.create_id()
    for ids in ("-", "NKrigl4", f"{image_id},NKrigl4"):
        status, answer = await caller.get(f"/images/{ids}/delete")
        assert status == 400
        assert answer["success"] is False
    assert (await caller.get(f"/images/{image_id}"))[0] == 200


# --- Several images at once


Change = Literal["delete", "add_tags", "remove_tags"]
in_every_change = pytest.mark.parametrize("change", ["delete", "add_tags", "remove_tags"])


async def change_images(caller: Caller, change: Change, ids: list[str]) -> tuple[int, Any]:
    return await caller.get(f"/images/{','.join(ids)}/{change}", **({} if change == "delete" else {"tags": "dog"}))


@with_worker
@in_every_change
async def test_several_ids_are_separated_by_commas(caller: Caller, change: Change) -> None:
    """The id is that of a single image, or comma-separated ids of several."""
    ids = [await caller.create_id() for _ in range(3)]
    status, answer = await change_images(caller, change, ids)
    assert status == 200
    assert [image["id"] for image in answer["response"]] == ids
    assert all(list(image) == PLAIN for image in answer["response"])


@in_every_change
async def test_up_to_20_images_at_once(caller: Caller, change: Change) -> None:
    """Up to 20 images at once are supported."""
    status, answer = await change_images(caller, change, [f"abcde{number:02}" for number in range(21)])
    assert (status, answer["error"]["code"]) == (400, "invalid-id")
    assert "20" in answer["error"]["message"]
    status, answer = await change_images(caller, change, [f"abcde{number:02}" for number in range(20)])
    assert "20" not in answer["error"]["message"]  # they are unknown, not too many


# --- Add tags to an image, remove tags from an image


@with_worker
async def test_add_tags_adds_one_or_more(caller: Caller) -> None:
    """Adds one or more comma-separated tags to an image, and returns it with them."""
    _, created = await caller.create()
    image_id = created["response"]["id"]
    status, answer = await caller.get(f"/images/{image_id}/add_tags", tags="animal")
    assert (status, answer["response"]["tags"]) == (200, ["animal"])
    status, answer = await caller.get(f"/images/{image_id}/add_tags", tags="dog,pet,four_legs")
    assert status == 200
    assert answer == examples.success(created["response"] | {"tags": examples.TAGS})


@with_worker
async def test_an_image_can_have_up_to_20_tags(caller: Caller) -> None:
    """Each image can have up to 20 associated tags."""
    image_id = await caller.create_id(tags=",".join(f"tag{number}" for number in range(19)))
    assert (await caller.get(f"/images/{image_id}/add_tags", tags="twentieth"))[0] == 200
    status, answer = await caller.get(f"/images/{image_id}/add_tags", tags="one-more")
    assert (status, answer["error"]["code"]) == (400, "too-many-tags")
    assert len((await caller.get(f"/images/{image_id}"))[1]["response"]["tags"]) == 20


@with_worker
async def test_remove_tags_removes_one_or_more(caller: Caller) -> None:
    """Removes one or more comma-separated tags from an image, and returns it with the remaining ones."""
    image_id = await caller.create_id(tags="animal,dog,pet,four_legs")
    status, answer = await caller.get(f"/images/{image_id}/remove_tags", tags="dog")
    assert (status, answer["response"]["tags"]) == (200, ["animal", "pet", "four_legs"])
    status, answer = await caller.get(f"/images/{image_id}/remove_tags", tags="animal,pet,four_legs")
    assert (status, answer["response"]["tags"]) == (200, [])


@pytest.mark.parametrize("change", ["add_tags", "remove_tags"])
async def test_the_tags_are_required(caller: Caller, change: str) -> None:
    """`tags` is required."""
    for params in ({}, {"tags": ""}):
        status, answer = await caller.get(f"/images/NKrigl4/{change}", **params)
        assert (status, answer["error"]["code"]) == (400, "invalid-parameter")


# --- Account


async def test_account_returns_the_documented_values(caller: Caller, new_tenant: NewTenant, connection: Any) -> None:
    """Retrieves the number of images and the storage used and remaining, with the values of the example."""
    tenant = await new_tenant(max_bytes=2147483648)
    await connection.execute("update accounts set num_images = 42, used_bytes = 112332108 where id = $1", tenant.id)
    response = await caller.api.get("/v1/account", params={"key": tenant.key})
    assert response.status == 200
    assert json.dumps(await response.json()) == json.dumps(examples.success(examples.ACCOUNT))


@with_worker
async def test_account_includes_recent_changes(caller: Caller) -> None:
    """It may take up to one minute for created or deleted images to be included: here they are included at once."""
    image_id = await caller.create_id()
    assert (await caller.get("/account"))[1]["response"]["num_images"] == 1
    await caller.get(f"/images/{image_id}/delete")
    assert (await caller.get("/account"))[1]["response"]["num_images"] == 0
