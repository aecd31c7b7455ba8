"""The rate limit of API keys: 429, the headers, and one limit for all API processes."""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
import time
from collections import Counter

import pytest

from service.api.openapi.responses import HEADERS, RATE_LIMIT_HEADERS
from service.config.settings import Settings
from service.launcher.embedded.valkey import Valkey
from tests.conftest import Client, NewTenant, Tenant, empty
from tests.support.daguerre_processes import Daguerre, Part, Response, stop_process
from tests.support.samples import jpeg, stored_files
from tests.support.scrapes import Scrape
from tests.support.waiting import until

POLICY = '"key";q=3;w=30'


def standing(headers: object) -> tuple[int, int]:
    assert hasattr(headers, "get")
    match = re.fullmatch('"key";r=([0-9]+);t=([0-9]+)', headers.get("RateLimit"))
    assert match is not None
    return int(match[1]), int(match[2])


@pytest.mark.settings(rate_limit="6/m,burst=3")
async def test_responses_have_rate_limit_headers(api: Client, tenant: Tenant) -> None:
    allowed = [await api.get(path, headers=tenant.headers) for path in ("/v1/account", "/v1/images/-", "/v1/account")]
    assert [response.status for response in allowed] == [200, 400, 200]
    refused = await api.get("/v1/account", headers=tenant.headers)
    assert refused.status == 429
    assert (await refused.json())["error"]["code"] == "rate-limited"
    assert [standing(response.headers) for response in (*allowed, refused)] == [(2, 10), (1, 10), (0, 10), (0, 10)]
    assert {response.headers["RateLimit-Policy"] for response in (*allowed, refused)} == {POLICY}
    for name in RATE_LIMIT_HEADERS:
        assert re.fullmatch(HEADERS[name]["schema"]["pattern"], refused.headers[name])
    assert refused.headers["Retry-After"] == "10"
    assert refused.headers["Cache-Control"] == "no-store"
    assert {"RateLimit", "RateLimit-Policy"} <= set(refused.headers["Access-Control-Expose-Headers"].split(", "))


@pytest.mark.settings(rate_limit="6/m,burst=3")
async def test_requests_without_key_have_no_rate_limit(api: Client, tenant: Tenant) -> None:
    for path, headers in (("/v1/account", {}), ("/v1/account", {"X-Api-Key": "x" * 40}), ("/healthz", tenant.headers)):
        for _ in range(5):
            response = await api.get(path, headers=headers)
            assert response.status in (200, 401)
            assert not {"RateLimit", "RateLimit-Policy"} & set(response.headers)
    assert standing((await api.get("/v1/account", headers=tenant.headers)).headers)[0] == 2


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/images"),
        ("GET", "/v1/images?url=http://127.0.0.1/"),
        ("GET", "/v1/images/AAAAAAA"),
        ("GET", "/v1/images/search"),
        ("DELETE", "/v1/images/AAAAAAA"),
        ("GET", "/v1/images/AAAAAAA/delete"),
        ("PUT", "/v1/images/AAAAAAA/tags"),
        ("GET", "/v1/images/AAAAAAA/add_tags"),
        ("DELETE", "/v1/images/AAAAAAA/tags"),
        ("GET", "/v1/images/AAAAAAA/remove_tags"),
    ],
)
@pytest.mark.settings(rate_limit="1/m")
async def test_rate_limit_applies_before_the_body(api: Client, new_tenant: NewTenant, method: str, path: str) -> None:
    tenant = await new_tenant()
    counted = await api.request(method, path, headers=tenant.headers)
    assert counted.status not in (401, 429)
    assert standing(counted.headers) == (0, 60)
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nX-Api-Key: {tenant.key}\r\n".encode()
        + (b"\r\n" if method == "GET" else b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n")
    )
    async with asyncio.timeout(5):
        line = await reader.readline()
    writer.close()
    assert line.startswith(b"HTTP/1.1 429 ")


async def test_unlimited_keys_have_no_rate_limit_headers(api: Client, tenant: Tenant) -> None:
    for _ in range(20):
        response = await api.get("/v1/account", headers=tenant.headers)
        assert response.status == 200
        assert not {"RateLimit", "RateLimit-Policy"} & set(response.headers)


@pytest.fixture
def redis_url(own_valkey: Valkey) -> str:
    return empty(own_valkey)


@pytest.fixture
async def serve(daguerre: Daguerre) -> Part:
    serve = daguerre.start_serve(2)
    await serve.wait_logged("api.listening", 2)
    return serve


async def ask(daguerre: Daguerre, times: int) -> list[Response]:
    """Each request has its own connection; connections are distributed among the processes."""
    answers: list[Response] = []
    while len(answers) < times:
        answers += await asyncio.gather(*(daguerre.get("/v1/account") for _ in range(min(40, times - len(answers)))))
    return answers


@pytest.mark.slow
@pytest.mark.settings(rate_limit="10/s,burst=100")
async def test_processes_share_the_rate_limit(daguerre: Daguerre, serve: Part) -> None:
    began = time.monotonic()
    answers = await ask(daguerre, 400)
    took = time.monotonic() - began
    statuses = Counter(answer.status for answer in answers)
    assert set(statuses) == {200, 429}
    # Each process may hold back a lease of 5 tokens, and none lets through more than there are.
    assert 100 - 2 * 5 <= statuses[200] <= 100 + math.ceil(10 * took)
    for pid in serve.child_pids("serve --fd"):
        await serve.wait_requests(11, pid=pid, status=200)
    refused = [answer for answer in answers if answer.status == 429]
    assert all(answer.code == "rate-limited" for answer in refused)
    await asyncio.sleep(float(refused[-1].headers["Retry-After"]))
    assert (await daguerre.get("/v1/account")).status == 200


@pytest.mark.slow
@pytest.mark.settings(rate_limit="1/h,burst=20")
async def test_hanging_valkey_delays_no_request(daguerre: Daguerre, serve: Part, own_valkey: Valkey) -> None:
    await ask(daguerre, 40)
    assert (await daguerre.get("/v1/account")).status == 429
    assert own_valkey.process is not None
    stop_process(own_valkey.process.pid)
    try:
        await asyncio.sleep(1.1)  # until the cached refusal expires
        answers = await ask(daguerre, 200)
    finally:
        os.kill(own_valkey.process.pid, signal.SIGCONT)
    assert {answer.status for answer in answers} == {200}
    assert max(answer.seconds for answer in answers) < 1.5
    assert all("RateLimit" not in answer.headers for answer in answers)
    await serve.wait_logged("rate_limit.suspended", 2)  # one of each process
    shown = Scrape(await (await daguerre.session.get("/metrics")).text())
    assert shown.value("daguerre_rate_limit_unchecked_total") == 200

    async def is_refused() -> bool:
        await ask(daguerre, 4)
        return serve.log.read_text().count('"rate_limit.recovered"') == 2

    await until(is_refused)
    assert (await daguerre.get("/v1/account")).status == 429


@pytest.mark.settings(rate_limit="1/h,burst=5")
@pytest.mark.usefixtures("worker")
async def test_rate_limited_upload_stores_nothing(api: Client, tenant: Tenant, settings: Settings) -> None:
    headers = tenant.headers | {"Content-Type": "image/jpeg"}
    answers = [await api.post("/v1/images", data=jpeg(), headers=headers) for _ in range(6)]
    assert [answer.status for answer in answers] == [*[200] * 5, 429]
    assert int(answers[-1].headers["Retry-After"]) > 3500
    assert len(stored_files(settings)) == 5


@pytest.mark.settings(rate_limit="1/h,burst=1")
async def test_a_connection_goes_on_after_a_429(port: int, tenant: Tenant) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    statuses: list[int] = []
    async with asyncio.timeout(20):
        while statuses.count(429) < 2:  # a request passes unchecked if Redis is slower than the limiter waits
            writer.write(f"GET /v1/account HTTP/1.1\r\nHost: x\r\nX-Api-Key: {tenant.key}\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = re.search(r"content-length: ([0-9]+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))
            statuses.append(int(head.split()[1]))
    writer.close()
    assert set(statuses) == {200, 429}
