"""deploy/nginx.conf in a real nginx in front of the API."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from service.config.settings import Settings
from service.errors import CATALOGUE
from tests.conftest import Tenant, serve_api
from tests.support.forms import FILE, field
from tests.support.samples import jpeg
from tests.support.waiting import until

CONF = (Path(__file__).parents[2] / "deploy" / "nginx.conf").read_text()
MAX_UPLOAD = 1 << 20
IMAGE = {"Content-Type": "image/jpeg"}
HOST = "img.example.com"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("nginx"),
    pytest.mark.needs("openssl"),
    pytest.mark.settings(max_upload=MAX_UPLOAD, x_accel_redirect="/protected"),
]


@dataclass(frozen=True)
class Proxy:
    """A running nginx. `session` sends requests to it and trusts its certificate."""

    session: aiohttp.ClientSession
    folder: Path
    http_port: int

    def read_logs(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("*.log"))

    def read_access_log(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.folder / "daguerre.log").read_text().splitlines()]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a certificate and its key, with the file names of certbot."""
    folder = tmp_path_factory.mktemp("certificate")
    kind = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST},IP:127.0.0.1"]
    files = ["-keyout", str(folder / "privkey.pem"), "-out", str(folder / "fullchain.pem")]
    subprocess.run(["openssl", *kind, *names, *files], check=True, capture_output=True)
    return folder


def configure(
    folder: Path, settings: Settings, certificate: Path, *, ports: Sequence[int], http_port: int, https_port: int
) -> Path:
    """Writes the configuration with the addresses and folders of the test. Returns the path of the main file."""
    conf = re.sub(r" *listen \[::\].*\n", "", CONF)
    for old, new in {
        "server 127.0.0.1:8080;": " ".join(f"server 127.0.0.1:{port};" for port in ports),
        '"status":"$status",': '"status":"$status","servers":"$upstream_addr",',
        "listen 80;": f"listen 127.0.0.1:{http_port};",
        "listen 443 ": f"listen 127.0.0.1:{https_port} ",
        "/etc/letsencrypt/live/img.example.com": str(certificate),
        "/var/log/nginx": str(folder),
        "client_max_body_size 51m": "client_max_body_size 2m",
        "/var/lib/daguerre/storage/renditions/": f"{settings.renditions_folder}/",
        "/var/lib/daguerre/storage/": f"{settings.storage_folder}/",
    }.items():
        assert old in conf, old
        conf = conf.replace(old, new)
    (folder / "daguerre.conf").write_text(conf)
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    main = folder / "nginx.conf"
    main.write_text(
        f"{user} pid {folder}/pid; error_log {folder}/error.log; daemon off; events {{}}\n"
        f"http {{ {temporary} access_log {folder}/access.log; include {folder}/daguerre.conf; }}\n"
    )
    return main


@pytest.fixture
async def proxy(tmp_path: Path, settings: Settings, certificate: Path, port: int) -> AsyncIterator[Proxy]:
    async with run_nginx(tmp_path / "nginx", settings, certificate, [port]) as proxy:
        yield proxy


@asynccontextmanager
async def run_nginx(folder: Path, settings: Settings, certificate: Path, ports: Sequence[int]) -> AsyncIterator[Proxy]:
    """Yields an nginx in front of the API hosts on these ports."""
    folder.mkdir()
    http_port, https_port = free_port(), free_port()
    main = configure(folder, settings, certificate, ports=ports, http_port=http_port, https_port=https_port)
    process = await asyncio.create_subprocess_exec("nginx", "-p", folder, "-c", main)
    try:
        context = ssl.create_default_context(cafile=str(certificate / "fullchain.pem"))
        async with aiohttp.ClientSession(
            f"https://127.0.0.1:{https_port}", connector=aiohttp.TCPConnector(ssl=context)
        ) as session:
            proxy = Proxy(session, folder, http_port)
            await until(lambda: is_up(proxy))
            yield proxy
    finally:
        process.terminate()
        await process.wait()


async def is_up(proxy: Proxy) -> bool:
    try:
        return (await proxy.session.get("/healthz")).status == 200
    except aiohttp.ClientConnectionError:
        return False


async def error_of(response: aiohttp.ClientResponse) -> tuple[int, str]:
    assert response.content_type == "application/json"
    return response.status, (await response.json())["error"]["code"]


async def upload(proxy: Proxy, tenant: Tenant, data: bytes, **headers: str) -> aiohttp.ClientResponse:
    return await proxy.session.post(f"/v1/images?key={tenant.key}", data=io.BytesIO(data), headers=IMAGE | headers)


@pytest.mark.usefixtures("worker")
async def test_uploads_and_downloads_pass_nginx(proxy: Proxy, tenant: Tenant) -> None:
    """nginx sends the large picture from the disk."""
    for picture in (jpeg(), jpeg(900, 700) + bytes(400 << 10)):
        response = await upload(proxy, tenant, picture)
        assert response.status == 200, await response.text()
        image_id = (await response.json())["response"]["id"]
        original = await proxy.session.get(f"/i/{image_id}")
        assert (original.status, await original.read()) == (200, picture)
        assert original.headers["Surrogate-Key"] == image_id
        again = await proxy.session.get(f"/i/{image_id}", headers={"If-None-Match": original.headers["ETag"]})
        assert again.status == 304
        partial = await proxy.session.get(f"/i/{image_id}", headers={"Range": "bytes=10-19"})
        assert (partial.status, await partial.read()) == (206, picture[10:20])


@pytest.mark.usefixtures("worker")
async def test_the_largest_form_passes_nginx(proxy: Proxy, tenant: Tenant) -> None:
    picture = jpeg() + bytes(MAX_UPLOAD - len(jpeg()))
    parts = [*[field(f"field{number}", "x" * 1900) for number in range(31)], field("tags", "lake"), (FILE[0], picture)]
    body = b"".join(
        b"--b\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + value + b"\r\n"
        for head, value in parts
    )
    response = await upload(proxy, tenant, body + b"--b--\r\n", **{"Content-Type": "multipart/form-data; boundary=b"})
    assert response.status == 200, await response.text()
    assert (await response.json())["response"]["tags"] == ["lake"]


async def test_large_body_is_413(proxy: Proxy, tenant: Tenant) -> None:
    """Daguerre refuses some sizes, nginx others."""
    for size in (MAX_UPLOAD + 1, (2 << 20) + 1, 20 << 20):
        response = await upload(proxy, tenant, bytes(size))
        assert await error_of(response) == (413, "upload-too-large")
        assert response.headers["Access-Control-Allow-Origin"] == "*"


async def test_early_response_passes_nginx(proxy: Proxy, tenant: Tenant) -> None:
    nobody = Tenant(tenant.id, "nobody", "x" * 40)
    assert await error_of(await upload(proxy, nobody, bytes(MAX_UPLOAD))) == (401, "unauthorized")


async def test_metrics_are_closed(proxy: Proxy) -> None:
    base = str(proxy.session._base_url).rstrip("/")
    for path in ("/metrics", "//metrics", "/%6detrics", "/i/../metrics", "/metrics?x=1"):
        assert await error_of(await proxy.session.get(URL(base + path, encoded=True))) == (404, "not-found")


async def test_plain_http_redirects_to_tls(proxy: Proxy) -> None:
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{proxy.http_port}/v1/images?verbose"
        response = await session.post(url, headers={"Host": HOST}, allow_redirects=False)
    assert (response.status, response.headers["Location"]) == (308, f"https://{HOST}/v1/images?verbose")


async def test_no_log_of_nginx_has_a_key(proxy: Proxy, tenant: Tenant, settings: Settings) -> None:
    """Includes failed requests, which the error log of nginx would quote."""
    key = tenant.key
    paths = [f"/v1/account?key={key}", f"/v1/images/{key}", f"/v1/account?a=/b&key={key}#x", f"/?key={key}&?key={key}"]
    for path in paths:
        await (await proxy.session.get(path)).read()
    await upload(proxy, tenant, bytes(20 << 20))
    await proxy.session.get(f"/{'x' * 9000}?key={key}")
    async with aiohttp.ClientSession() as session:
        await session.get(f"http://127.0.0.1:{proxy.http_port}/v1/account?key={key}", allow_redirects=False)
    conf = proxy.folder / "daguerre.conf"
    conf.write_text(re.sub(r"server 127\.0\.0\.1:\d+;", f"server 127.0.0.1:{free_port()};", conf.read_text()))
    os.kill(int((proxy.folder / "pid").read_text()), signal.SIGHUP)  # reloads the configuration

    async def is_unavailable() -> bool:
        response = await proxy.session.get(f"/v1/account?key={key}")
        if response.status == 200:
            return False
        assert await error_of(response) == (503, "busy")
        assert response.headers["Retry-After"] == "1"
        return True

    await until(is_unavailable)
    assert key not in proxy.read_logs()
    log = proxy.read_access_log()
    assert {"/v1/account", "[key]", "/v1/images", "/"} <= {line["path"] for line in log}
    assert all(line["status"].isdigit() for line in log)


@pytest.mark.usefixtures("worker")
async def test_several_hosts_share_the_requests(
    tmp_path: Path, settings: Settings, certificate: Path, port: int, tenant: Tenant
) -> None:
    async with (
        serve_api(settings) as other,
        run_nginx(tmp_path / "nginx", settings, certificate, [port, other]) as proxy,
    ):
        for _ in range(4):
            assert (await upload(proxy, tenant, jpeg())).status == 200
        servers = {line["servers"] for line in proxy.read_access_log()}
        assert servers == {f"127.0.0.1:{port}", f"127.0.0.1:{other}"}


@pytest.mark.usefixtures("worker")
async def test_stopped_host_gets_no_requests(
    tmp_path: Path, settings: Settings, certificate: Path, port: int, tenant: Tenant
) -> None:
    async with serve_api(settings) as stopped:
        pass
    async with run_nginx(tmp_path / "nginx", settings, certificate, [stopped, port]) as proxy:
        for number in range(10):
            response = await upload(proxy, tenant, jpeg() + bytes(number << 10))
            assert response.status == 200, await response.text()
            image_id = (await response.json())["response"]["id"]
            assert (await proxy.session.get(f"/i/{image_id}")).status == 200
        tried = [line for line in proxy.read_access_log() if f":{stopped}" in line["servers"]]
        assert 1 <= len(tried) <= 2


async def test_host_without_a_network_delays_one_request(
    tmp_path: Path, settings: Settings, certificate: Path, port: int, tenant: Tenant
) -> None:
    """A host that is cut off refuses no connection, so nginx waits for it, but not for its default of a minute."""
    started = time.monotonic()
    with unresponsive_host() as silent:
        async with run_nginx(tmp_path / "nginx", settings, certificate, [silent, port]) as proxy:
            for _ in range(10):
                response = await proxy.session.get("/v1/account", headers=tenant.headers)
                assert response.status == 200
            assert any(f":{silent}" in line["servers"] for line in proxy.read_access_log())
    assert time.monotonic() - started < 10


@contextmanager
def unresponsive_host() -> Iterator[int]:
    """Yields a port on which connections are neither accepted nor refused, because its queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            with suppress(BlockingIOError):
                client.connect(listener.getsockname())
        yield int(listener.getsockname()[1])


def test_nginx_errors_look_like_the_api() -> None:
    errors = re.findall(r"return (\d+) '(.+)';", CONF)
    assert len(errors) == 4
    for status, text in errors:
        error = json.loads(text)["error"]
        assert CATALOGUE[error["code"]][0] == int(status)
        assert error["message"] == CATALOGUE[error["code"]][1] or error["code"] == "busy"


def test_nginx_allows_form_fields() -> None:
    [megabytes] = re.findall(r"client_max_body_size (\d+)m;", CONF)
    assert int(megabytes) << 20 == Settings.model_fields["max_upload"].default + (1 << 20)
