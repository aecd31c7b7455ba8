"""Misspelt parameters: which are refused, which are ignored, and which name is suggested."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from service.errors import ServiceError
from service.renditions.parsing import parse
from service.spelling import distance, find_near_miss, find_nearest, quote
from tests.conftest import Client, Tenant
from tests.support.samples import jpeg

KNOWN = ("key", "url", "tags", "with_exif", "verbose", "with_mini_preview", "with_account")
NEAR_MISSES = [
    ("tag", "tags"),
    ("tgas", "tags"),
    ("tagss", "tags"),
    ("tabs", "tags"),
    ("TAGS", "tags"),
    ("tags[]", "tags"),
    ("tags[0]", "tags"),
    ("with_exifs", "with_exif"),
    ("with_exfi", "with_exif"),
    ("with-exif", "with_exif"),
    ("withExif", "with_exif"),
    ("wiht_exfi", "with_exif"),
    ("verbos", "verbose"),
    ("Verbose", "verbose"),
    ("with_mini_preveiw", "with_mini_preview"),
    ("withminipreview", "with_mini_preview"),
    ("with_acount", "with_account"),
]
UNRELATED = [
    *("_", "t", "v", "cb", "ts", "rnd", "rand", "nocache", "cache", "timestamp", "utm_source", "utm_campaign", "gclid"),
    *(
        "fbclid",
        "callback",
        "jsonp",
        "lang",
        "page",
        "version",
        "token",
        "width",
        "format",
        "limit",
        "a" * 5000,
        "é",
        "",
    ),
]


@pytest.mark.parametrize(("name", "meant"), NEAR_MISSES)
def test_near_miss_is_found(name: str, meant: str) -> None:
    assert find_near_miss(name, KNOWN) == meant
    assert find_nearest(name, KNOWN) == meant


@pytest.mark.parametrize("name", UNRELATED, ids=range(len(UNRELATED)))
def test_unrelated_name_is_no_near_miss(name: str) -> None:
    assert find_near_miss(name, KNOWN) is None


def test_nearest_name_may_contain_the_other() -> None:
    filters = (*KNOWN, "created_after", "created_before", "limit")
    assert find_nearest("before", filters) == "created_before"
    assert find_nearest("exif", filters) == "with_exif"
    assert find_nearest("created", filters) is None  # two contain it
    assert find_nearest("page", filters) is None


def test_transposition_counts_as_one_edit() -> None:
    assert [distance(*words) for words in (("ab", "ba"), ("", "abc"), ("tag", "tags"), ("same", "same"))] == [
        1,
        3,
        1,
        0,
    ]


def test_long_name_is_not_quoted() -> None:
    assert quote("tag") == "'tag'"
    assert quote("a" * 41) == quote("é") == "of the name that was sent"


async def answer(api: Client, method: str, path: str, tenant: Tenant, **params: str) -> tuple[int, Any]:
    content: dict[str, Any] = {"data": jpeg(), "headers": {"Content-Type": "image/jpeg"}} if method == "POST" else {}
    response = await api.request(method, path, params={"key": tenant.key, **params}, **content)
    return response.status, await response.json()


CALLS = [
    ("POST", "/v1/images", {}),
    ("GET", "/v1/images", {"url": "http://127.0.0.1:1/a.jpg"}),
    ("GET", "/v1/images/NKrigl4", {}),
    ("GET", "/v1/images/NKrigl4/delete", {}),
    ("DELETE", "/v1/images/NKrigl4", {}),
    ("GET", "/v1/images/NKrigl4/add_tags", {"tags": "a"}),
    ("PUT", "/v1/images/NKrigl4/tags", {"tags": "a"}),
    ("GET", "/v1/images/NKrigl4/remove_tags", {"tags": "a"}),
]


@pytest.mark.parametrize(("method", "path", "params"), CALLS, ids=[f"{method} {path}" for method, path, _ in CALLS])
async def test_misspelt_parameter_is_refused(
    api: Client, tenant: Tenant, method: str, path: str, params: dict[str, str]
) -> None:
    status, body = await answer(api, method, path, tenant, **params, with_exifs="1")
    assert (status, body["error"]["code"]) == (400, "invalid-parameter")
    assert body["error"]["message"] == "Unknown parameter 'with_exifs'; did you mean with_exif?"


@pytest.mark.usefixtures("worker")
async def test_misspelt_tags_of_an_upload_are_refused(api: Client, tenant: Tenant) -> None:
    status, body = await answer(api, "POST", "/v1/images", tenant, tag="lake")
    assert (status, body["error"]["message"]) == (400, "Unknown parameter 'tag'; did you mean tags?")
    status, _ = await answer(api, "POST", "/v1/images", tenant, **dict.fromkeys(UNRELATED[:20], "1"))
    assert status == 200
    _, account = await answer(api, "GET", "/v1/account", tenant, _="1732490000000")
    assert account["response"]["num_images"] == 1


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("tag", "did you mean tags?"),
        ("formt", "did you mean format?"),
        ("before", "did you mean created_before?"),
        ("created-after", "did you mean created_after?"),
        (
            "page",
            "the parameters are key, tags, format, sha256, created_after, created_before, limit, cursor, with_exif,",
        ),
        ("_", "the parameters are key, "),
    ],
)
async def test_search_refuses_unknown_parameters(api: Client, tenant: Tenant, name: str, advice: str) -> None:
    status, body = await answer(api, "GET", "/v1/images/search", tenant, **{name: "x"})
    assert (status, body["error"]["code"]) == (400, "invalid-parameter")
    assert body["error"]["message"].startswith(f"Unknown parameter '{name}'; {advice}")


def test_rendition_error_suggests_the_nearest_name() -> None:
    with pytest.raises(ServiceError, match="Unknown parameter 'widht'; did you mean width"):
        parse([("widht", "100")])
    with pytest.raises(ServiceError, match="Unknown parameter 'colour'; the parameters are width, height, "):
        parse([("colour", "100")])


@pytest.mark.usefixtures("worker")
async def test_misspelt_form_field_is_refused(api: Client, tenant: Tenant) -> None:
    for name, status in (("tags[]", 400), ("tag", 400), ("csrf_token", 200), ("_", 200)):
        form = aiohttp.FormData()
        form.add_field(name, "lake")
        form.add_field("file", jpeg(), filename="a.jpg", content_type="image/jpeg")
        response = await api.post("/v1/images", headers=tenant.headers, data=form)
        assert response.status == status, await response.text()
