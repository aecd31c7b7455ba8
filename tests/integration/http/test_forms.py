"""The fields of a form besides its file: parameters are read, other fields are ignored, and none is stored."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from service.config.settings import Settings
from service.http.bodies import FORM_OVERHEAD_BYTES, MAX_FIELD_BYTES, MAX_FIELDS
from tests.conftest import Client, Tenant
from tests.support.api import error_of
from tests.support.forms import FILE, PICTURE, Part, field
from tests.support.samples import stored_files

# As browsers send a file input without a file.
NO_FILE: Part = ('name="other"; filename=""\r\nContent-Type: application/octet-stream', b"")


async def send(api: Client, tenant: Tenant, parts: Iterable[Part], query: str = "") -> Any:
    body = b"".join(
        b"--b\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + value + b"\r\n"
        for head, value in parts
    )
    headers = tenant.headers | {"Content-Type": "multipart/form-data; boundary=b"}
    return await api.post(f"/v1/images{query}", data=body + b"--b--\r\n", headers=headers)


async def image_of(response: Any) -> Any:
    assert response.status == 200, await response.text()
    return (await response.json())["response"]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("is_last", [False, True])
async def test_form_fields_are_parameters(api: Client, tenant: Tenant, *, is_last: bool) -> None:
    fields = [
        field("csrf_token", "K" * 64),
        field("tags", "lake, évening"),
        field("tags", "sun"),
        NO_FILE,
        field("verbose", "0"),  # a hidden default, and its checkbox
        field("verbose", "on"),
        field("with_exif", " true "),
        field("with_mini_preview", "no"),
        ("name=with_account", b""),
        field("description", "<p>Not a picture</p>"),
        field("note", b"\xff\xfe"),
        ("", b"a part without a name"),
    ]
    image = await image_of(await send(api, tenant, [FILE, *fields] if is_last else [*fields, FILE]))
    assert image["tags"] == ["lake", "évening", "sun"]
    assert (image["format"], image["exif"], image["account"]["num_images"]) == ("jpeg", {}, 1)
    assert "mini_preview" not in image
    assert image["filesize"] == len(PICTURE)


@pytest.mark.usefixtures("worker")
async def test_form_fields_override_the_query(api: Client, tenant: Tenant) -> None:
    parts = [field("verbose", "0"), FILE, field("tags", " ")]
    image = await image_of(await send(api, tenant, parts, "?tags=lake&verbose&with_exif"))
    assert (image["tags"], "format" in image, "exif" in image) == (["lake"], False, True)


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize(
    ("bad", "query", "word"),
    [
        (field("verbose", "perhaps"), "", "verbose"),
        (field("tags", ",".join(map(str, range(21)))), "", "20 tags"),
        (field("tags", "a\x01b"), "", "control"),
        (field("tags", b"\xe9vening"), "", "UTF-8"),
        (field("tags", "sun"), "?tags=lake", "not in both"),
    ],
)
async def test_invalid_form_field_stores_nothing(
    api: Client,
    tenant: Tenant,
    settings: Settings,
    connection: Any,
    bad: Part,
    query: str,
    word: str,
    *,
    is_last: bool,
) -> None:
    response = await send(api, tenant, [FILE, bad] if is_last else [bad, FILE], query)
    status, code, message = await error_of(response)
    assert (status, code) == (400, "invalid-parameter")
    assert word in message
    assert stored_files(settings) == []
    assert await connection.fetchval("select count(*) from images") == 0


async def test_key_in_a_form_is_ignored(api: Client, tenant: Tenant) -> None:
    """The key is checked before the body arrives."""
    nobody = Tenant(tenant.id, "nobody", "")
    assert (await error_of(await send(api, nobody, [field("key", tenant.key), FILE])))[:2] == (401, "unauthorized")


@pytest.mark.usefixtures("worker")
async def test_ignored_fields_are_not_stored(
    api: Client, tenant: Tenant, connection: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "S3cr3t" * 6
    await image_of(await send(api, tenant, [field("key", secret), field("url", secret), FILE, field("csrf", secret)]))
    rows = await connection.fetch("select images::text from images")
    output = capsys.readouterr()
    assert secret not in json.dumps([row[0] for row in rows]) + output.out + output.err


@pytest.mark.parametrize("parts", [[NO_FILE], [field("url", "https://example.com/a.jpg")], []])
async def test_form_without_a_file_is_explained(api: Client, tenant: Tenant, parts: list[Part]) -> None:
    status, code, message = await error_of(await send(api, tenant, parts))
    assert (status, code) == (400, "empty-body")
    assert "no file" in message


async def test_empty_file_with_a_name_is_refused(api: Client, tenant: Tenant) -> None:
    assert (await error_of(await send(api, tenant, [(FILE[0], b"")])))[:2] == (400, "empty-body")


@pytest.mark.usefixtures("worker")
@pytest.mark.settings(max_upload=len(PICTURE))
async def test_form_fields_do_not_count_as_file_bytes(api: Client, tenant: Tenant) -> None:
    """As many and as large as fields may be, beside the largest picture that is allowed."""
    head = "Content-Disposition" + 'form-data; name="a"'
    value = b"x" * (MAX_FIELD_BYTES // MAX_FIELDS - len(head))
    await image_of(await send(api, tenant, [FILE, *[('name="a"', value)] * MAX_FIELDS]))
    too_large = (FILE[0], PICTURE + bytes(FORM_OVERHEAD_BYTES + 1))
    assert (await error_of(await send(api, tenant, [too_large])))[:2] == (413, "upload-too-large")
    too_large = (FILE[0], PICTURE + b"x")
    assert (await error_of(await send(api, tenant, [too_large])))[:2] == (413, "upload-too-large")


@pytest.mark.usefixtures("worker")
async def test_encoded_form_field_is_decoded(api: Client, tenant: Tenant) -> None:
    """As Java's clients send text (RFC 2045, section 6)."""
    quoted = (
        'name="tags"\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: quoted-printable',
        b"=C3=A9t=C3=A9",
    )
    eight = ('name="verbose"\r\nContent-Type: text/plain; charset=UTF-8\r\nContent-Transfer-Encoding: 8bit', b"true")
    image = await image_of(await send(api, tenant, [quoted, eight, FILE]))
    assert (image["tags"], image["format"]) == (["été"], "jpeg")
