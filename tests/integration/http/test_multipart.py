"""The other fields of a form that brings a picture: parameters are taken, all others ignored, and none is stored."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from service.config.settings import Settings
from service.http.multipart import FORM_OVERHEAD_BYTES, MAX_FIELD_BYTES, MAX_FIELDS
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


async def shown(answer: Any) -> Any:
    assert answer.status == 200, await answer.text()
    return (await answer.json())["response"]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("is_behind", [False, True])
async def test_parameters_may_be_fields_of_a_form(api: Client, tenant: Tenant, *, is_behind: bool) -> None:
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
    image = await shown(await send(api, tenant, [FILE, *fields] if is_behind else [*fields, FILE]))
    assert image["tags"] == ["lake", "évening", "sun"]
    assert (image["format"], image["exif"], image["account"]["num_images"]) == ("jpeg", {}, 1)
    assert "mini_preview" not in image
    assert image["filesize"] == len(PICTURE)


@pytest.mark.usefixtures("worker")
async def test_a_field_and_the_query_go_together(api: Client, tenant: Tenant) -> None:
    parts = [field("verbose", "0"), FILE, field("tags", " ")]
    image = await shown(await send(api, tenant, parts, "?tags=lake&verbose&with_exif"))
    assert (image["tags"], "format" in image, "exif" in image) == (["lake"], False, True)


@pytest.mark.parametrize("is_behind", [False, True])
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
async def test_a_wrong_field_stores_nothing(
    api: Client,
    tenant: Tenant,
    settings: Settings,
    connection: Any,
    bad: Part,
    query: str,
    word: str,
    *,
    is_behind: bool,
) -> None:
    answer = await send(api, tenant, [FILE, bad] if is_behind else [bad, FILE], query)
    status, code, message = await error_of(answer)
    assert (status, code) == (400, "invalid-parameter")
    assert word in message
    assert stored_files(settings) == []
    assert await connection.fetchval("select count(*) from images") == 0


async def test_a_key_in_a_form_is_no_key(api: Client, tenant: Tenant) -> None:
    """Who may send a body is decided before it comes."""
    nobody = Tenant(tenant.id, "nobody", "")
    assert (await error_of(await send(api, nobody, [field("key", tenant.key), FILE])))[:2] == (401, "unauthorized")


@pytest.mark.usefixtures("worker")
async def test_what_is_ignored_is_not_kept(
    api: Client, tenant: Tenant, connection: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "S3cr3t" * 6
    await shown(await send(api, tenant, [field("key", secret), field("url", secret), FILE, field("csrf", secret)]))
    rows = await connection.fetch("select images::text from images")
    output = capsys.readouterr()
    assert secret not in json.dumps([row[0] for row in rows]) + output.out + output.err


@pytest.mark.parametrize("parts", [[NO_FILE], [field("url", "https://example.com/a.jpg")], []])
async def test_a_form_without_a_file_says_so(api: Client, tenant: Tenant, parts: list[Part]) -> None:
    status, code, message = await error_of(await send(api, tenant, parts))
    assert (status, code) == (400, "empty-body")
    assert "no file" in message


async def test_an_empty_file_with_a_name_is_refused(api: Client, tenant: Tenant) -> None:
    assert (await error_of(await send(api, tenant, [(FILE[0], b"")])))[:2] == (400, "empty-body")


@pytest.mark.usefixtures("worker")
@pytest.mark.settings(max_upload=len(PICTURE))
async def test_fields_take_nothing_of_the_pictures_size(api: Client, tenant: Tenant) -> None:
    """As many and as large as fields may be, beside the largest picture that is allowed."""
    head = "Content-Disposition" + 'form-data; name="a"'
    value = b"x" * (MAX_FIELD_BYTES // MAX_FIELDS - len(head))
    await shown(await send(api, tenant, [FILE, *[('name="a"', value)] * MAX_FIELDS]))
    too_large = (FILE[0], PICTURE + bytes(FORM_OVERHEAD_BYTES + 1))
    assert (await error_of(await send(api, tenant, [too_large])))[:2] == (413, "upload-too-large")
    too_large = (FILE[0], PICTURE + b"x")
    assert (await error_of(await send(api, tenant, [too_large])))[:2] == (413, "upload-too-large")


@pytest.mark.usefixtures("worker")
async def test_a_field_may_be_encoded(api: Client, tenant: Tenant) -> None:
    """As Java's clients send text (RFC 2045, section 6)."""
    quoted = (
        'name="tags"\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: quoted-printable',
        b"=C3=A9t=C3=A9",
    )
    eight = ('name="verbose"\r\nContent-Type: text/plain; charset=UTF-8\r\nContent-Transfer-Encoding: 8bit', b"true")
    image = await shown(await send(api, tenant, [quoted, eight, FILE]))
    assert (image["tags"], image["format"]) == (["été"], "jpeg")
