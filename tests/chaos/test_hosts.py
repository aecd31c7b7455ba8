"""Two API hosts and two worker hosts, which share nothing but PostgreSQL, Valkey and an object store."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from service.config.settings import Settings
from service.config.values import parse_rate
from service.launcher.process import end_orphans
from tests.chaos.load import ChaosClient, mixed_load
from tests.chaos.site import Site, run_site
from tests.support.clocks import wrong_clock
from tests.support.daguerre_processes import Daguerre, Part, processes_of
from tests.support.forwarder import Forwarder
from tests.support.samples import jpeg
from tests.support.scrapes import Scrape
from tests.support.servers import free_port
from tests.support.waiting import until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="libfaketime"),
    pytest.mark.timeout(180),  # a dozen processes have to start, on a busy machine
]

_CLIENTS_PER_HOST = 4
_RECOVERY_TIMEOUT_S = 30


@dataclass
class Host:
    """A host with processes of one kind, and its ways to the servers."""

    daguerre: Daguerre
    links: Sequence[Forwarder]
    environment: Mapping[str, str]
    parts: list[Part] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.daguerre.port}"

    def start_api(self) -> None:
        self.parts.append(self.daguerre.start_serve(2, self.environment))

    def start_worker(self) -> None:
        self.parts.append(self.daguerre.start_worker(self.environment))

    def kill(self) -> None:
        """Ends all processes at once, as a power cut does."""
        part = self.parts[-1]
        children = part.child_pids("service.cli")
        part.process.kill()
        part.process.wait()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        end_orphans(part.process)

    def cut_off(self) -> None:
        for link in self.links:
            link.cut_off()

    def reconnect(self) -> None:
        for link in self.links:
            link.restore()


@asynccontextmanager
async def run_host(
    site: Site, name: str, folder: Path, clock: Mapping[str, str] | None = None, **changes: object
) -> AsyncIterator[Host]:
    """Opens a host without processes. Its sockets are in a folder with a short path."""
    assert site.object_store is not None
    sockets = site.valkey.folder.parent / name
    sockets.mkdir()
    store = site.object_store.environment()
    port = urlsplit(store["AWS_ENDPOINT_URL_S3"]).port
    assert port is not None
    async with AsyncExitStack() as stack:
        to_postgres = await stack.enter_async_context(
            Forwarder.open(site.postgres.socket_folder / ".s.PGSQL.5432", sockets / ".s.PGSQL.5432")
        )
        to_valkey = await stack.enter_async_context(Forwarder.open(site.valkey.socket_path, sockets / "valkey.sock"))
        to_store = await stack.enter_async_context(Forwarder.open(port))
        settings: Settings = site.settings.model_copy(
            update={
                "data": folder / name,
                "cache": folder / name / "cache",
                "metrics_dir": folder / name / "metrics",
                "database_url": f"postgresql://daguerre@/daguerre?host={sockets}",
                "redis_url": f"unix://{sockets / 'valkey.sock'}?db=0",
                **changes,
            }
        )
        environment = {**store, "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{to_store.port}", **(clock or {})}
        (folder / name).mkdir()
        daguerre = await stack.enter_async_context(processes_of(settings, site.keys[0], folder / name / "logs"))
        yield Host(daguerre, (to_postgres, to_valkey, to_store), environment)


@pytest.fixture
async def site(tmp_path: Path, record_property: Callable[[str, object], None]) -> AsyncIterator[Site]:
    """The servers, and a deployment of one host more, which checks the invariants."""
    async with run_site(tmp_path, record_property, on_s3=True) as running:
        yield running


async def wait_served(clients: Sequence[ChaosClient]) -> None:
    """Returns when every client has had a successful request after this call."""
    now = time.monotonic()
    await until(lambda: all(client.history.succeeded_at > now for client in clients), _RECOVERY_TIMEOUT_S)


async def test_hosts_are_cut_off_and_killed(site: Site, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        api_1 = await stack.enter_async_context(run_host(site, "api1", tmp_path))
        clocks = [wrong_clock(tmp_path, offset).environment for offset in ("+2", "-2")]
        api_2 = await stack.enter_async_context(run_host(site, "api2", tmp_path, clocks[0]))
        worker_1 = await stack.enter_async_context(run_host(site, "worker1", tmp_path))
        worker_2 = await stack.enter_async_context(run_host(site, "worker2", tmp_path, clocks[1]))
        for worker in site.workers:
            worker.send(signal.SIGTERM)
        for host in (api_1, api_2):
            host.start_api()
        for host in (worker_1, worker_2):
            host.start_worker()
        for host in (api_1, api_2):
            await host.daguerre.wait_ready(_RECOVERY_TIMEOUT_S)
        async with AsyncExitStack() as load:
            clients = [
                client
                for host in (api_1, api_2)
                for client in await load.enter_async_context(
                    mixed_load(host.base_url, site.keys, clients=_CLIENTS_PER_HOST)
                )
            ]
            await wait_served(clients)
            api_2.cut_off()
            worker_2.cut_off()
            await asyncio.sleep(10)
            api_2.reconnect()
            worker_2.reconnect()
            await wait_served(clients)
            api_1.kill()
            worker_1.kill()
            await asyncio.sleep(5)
            api_1.start_api()
            worker_1.start_worker()
            await wait_served(clients)
        await site.assert_invariants(clients)
        assert sum(client.history.responses["200"] for client in clients) > 100


async def test_one_rendition_is_rendered_once_for_all_hosts(site: Site, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        for worker in site.workers:
            worker.send(signal.SIGTERM)
        hosts = [await stack.enter_async_context(run_host(site, f"api{number}", tmp_path)) for number in (1, 2)]
        ports = [free_port() for _ in range(2)]
        for number, port in enumerate(ports):
            host = await stack.enter_async_context(run_host(site, f"worker{number}", tmp_path, metrics_port=port))
            host.start_worker()
        for host in hosts:
            host.start_api()
            await host.daguerre.wait_ready(_RECOVERY_TIMEOUT_S)
        uploaded = await hosts[0].daguerre.upload(jpeg(3000, 2000))
        assert uploaded.status == 200
        path = f"/i/{uploaded.result['id']}?width=300&format=avif"

        async def request(host: Host) -> tuple[int, bytes, str]:
            async with host.daguerre.session.get(f"{host.base_url}{path}") as answer:
                return answer.status, await answer.read(), answer.headers["ETag"]

        answers = await asyncio.gather(*(request(host) for host in hosts for _ in range(20)))
        assert len(set(answers)) == 1
        assert answers[0][0] == 200
        assert await _count_renders(hosts[0].daguerre.session, ports) == 1


async def _count_renders(session: aiohttp.ClientSession, ports: Sequence[int]) -> float:
    count = 0.0
    for port in ports:
        async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
            count += Scrape(await answer.text()).value("daguerre_render_duration_seconds_count")
    return count


async def test_rate_limit_holds_for_all_hosts_together(site: Site, tmp_path: Path) -> None:
    rate = parse_rate("20/s,burst=60")
    assert rate is not None
    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(run_host(site, f"api{number}", tmp_path, rate_limit=rate))
            for number in (1, 2)
        ]
        for host in hosts:
            host.start_api()
            await host.daguerre.wait_ready(_RECOVERY_TIMEOUT_S)
        started = time.monotonic()
        admitted = 0

        async def request(host: Host) -> None:
            nonlocal admitted
            while time.monotonic() < started + 4:
                response = await host.daguerre.get("/v1/account")
                assert response.status in {200, 429}
                admitted += response.status == 200

        await asyncio.gather(*(request(host) for host in hosts for _ in range(4)))
        elapsed_s = time.monotonic() - started
        # Requests are not limited while Valkey is slow, and two separate limits would admit twice as many.
        assert 0.5 * rate.per_s * elapsed_s < admitted <= 1.3 * (rate.burst + rate.per_s * elapsed_s)
