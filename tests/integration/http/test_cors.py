"""Pages of any origin may call the API: every response allows it, and a preflight needs no key."""

from __future__ import annotations

import pytest
from aiohttp import web

from service.api.app import create_app
from service.config.settings import Settings
from tests.conftest import Client, Tenant
from tests.support.raw_http import BAD_REQUESTS, exchange

PREFLIGHT = {
    "Origin": "https://page.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,x-api-key",
}


def is_allowed(headers: object) -> bool:
    assert hasattr(headers, "get")
    exposed = headers.get("Access-Control-Expose-Headers") or headers.get("access-control-expose-headers", "")
    origin = headers.get("Access-Control-Allow-Origin") or headers.get("access-control-allow-origin")
    return origin == "*" and {"Retry-After", "X-Request-Id"} <= set(exposed.split(", "))


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/account", 200), ("/v1/images/AAAAAAA", 404), ("/v1/images/-", 400), ("/nowhere", 404), ("/healthz", 200)],
)
async def test_pages_can_read_every_response(api: Client, tenant: Tenant, path: str, status: int) -> None:
    response = await api.get(path, headers=tenant.headers)
    assert response.status == status
    assert is_allowed(response.headers)
    assert "Access-Control-Allow-Credentials" not in response.headers


async def test_pages_can_read_401_and_405(api: Client) -> None:
    for method, path, status in (("GET", "/v1/account", 401), ("PATCH", "/v1/account", 405)):
        response = await api.request(method, path)
        assert response.status == status
        assert is_allowed(response.headers)


@pytest.mark.parametrize("case", BAD_REQUESTS)
async def test_pages_can_read_parser_errors(port: int, case: str) -> None:
    _, headers, _ = await exchange(port, BAD_REQUESTS[case])
    assert is_allowed(headers)


async def test_pages_can_read_417(port: int) -> None:
    status, headers, _ = await exchange(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\nExpect: a-miracle\r\n\r\n")
    assert status == 417
    assert is_allowed(headers)


async def test_preflight_needs_no_key(api: Client) -> None:
    response = await api.options("/v1/images/NKrigl4", headers=PREFLIGHT)
    assert response.status == 204
    assert await response.read() == b""
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert "GET" in response.headers["Access-Control-Allow-Methods"].split(", ")
    assert "PATCH" not in response.headers["Access-Control-Allow-Methods"]
    allowed = {name.lower() for name in response.headers["Access-Control-Allow-Headers"].split(", ")}
    assert allowed >= {"content-type", "x-api-key", "authorization", "idempotency-key", "x-request-id"}
    assert int(response.headers["Access-Control-Max-Age"]) > 0


async def test_preflight_of_each_route_lists_its_methods(api: Client, settings: Settings) -> None:
    routes = list(create_app(settings).router.resources())
    assert routes
    for resource in routes:
        assert isinstance(resource, web.Resource)
        methods = {route.method for route in resource}
        response = await api.options(resource.canonical.replace("{", "").replace("}", ""), headers=PREFLIGHT)
        assert response.status == 204
        if resource.canonical != "/metrics":
            assert set(response.headers["Access-Control-Allow-Methods"].split(", ")) >= methods


async def test_preflight_of_unknown_path_succeeds(api: Client) -> None:
    preflight = await api.options("/v1/imagse", headers=PREFLIGHT)
    assert (preflight.status, preflight.headers["Access-Control-Allow-Methods"]) == (204, "*")
    response = await api.post("/v1/imagse", headers={"Origin": "https://page.example"})
    assert response.status == 404
    assert is_allowed(response.headers)


async def test_plain_options_lists_methods(api: Client) -> None:
    response = await api.options("/v1/account")
    assert (response.status, response.headers["Allow"]) == (204, "GET, HEAD")
    assert "Access-Control-Allow-Methods" not in response.headers
    assert (await api.options("/nowhere")).status == 404
