"""`daguerre up` as a process, with all processes that it starts."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from service.config.settings import Settings
from service.launcher.embedded import data_folder, instance
from service.launcher.embedded.postgres import Postgres, server_user
from service.schema.applied import record_version
from service.schema.definition import Schema
from service.telemetry import metric_files
from tests.support.processes import is_alive
from tests.support.up import up
from tests.support.waiting import wait_for

# Each test starts all servers, some of them three times.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(180),
]


class TestUp:
    def test_serves_and_keeps_data(self, server_folder: Path) -> None:
        data = server_folder / "data"
        with up(data, "--workers", "1") as first:
            key, sample = first.key, first.sample
            status, body = first.get(f"/v1/images?key={key}&with_exif=true", sample.read_bytes())
            assert (status, '"Make":"Daguerre"' in body) == (200, True), body
            image = re.search(r'"id":"(\w+)"', body)
            assert image
            log = Path(first.find(r"Log +(\S+) "))
            assert log == data / "log" / "daguerre.log"
            line = r"Z request POST /v1/images status=200 ms=[\d.]+ id=\w+$"
            for path in (log, first.log):
                wait_for(lambda: re.search(line, path.read_text(), re.MULTILINE) is not None)  # noqa: B023
            assert max(map(len, first.text.splitlines() + log.read_text().splitlines())) <= 100, first.text
            running = instance.find(data)
            assert running is not None
            assert running.pid == first.process.pid
            with up(data, ready=False) as second:
                assert second.process.wait(20) == 1
            assert (
                f"Error: Daguerre is running on {data} already ({running.local_url}, process {running.pid})"
                in second.text
            )
            port = running.local_url.rpartition(":")[2]
            with up(server_folder / "other", "--port", port, ready=False) as third:
                assert third.process.wait(20) == 1
            assert f"Port {port} on 127.0.0.1 is in use" in third.text
            parts = first.parts()
            first.process.terminate()
            assert first.process.wait(20) == 0, first.text
        assert not any(is_alive(pid) for pid in parts)
        assert "Traceback" not in first.text
        assert key not in first.text  # the output may be stored as a log
        assert instance.find(data) is None
        with up(data, "--workers", "1") as again:
            assert again.find(r"Key +to see it: cat (\S+)") == str(data / "first-key")
            assert again.key == key
            assert again.get(f"/v1/images/{image[1]}?key={key}")[0] == 200
            parts = again.parts()
            assert len(parts) >= 5
            again.process.kill()
            wait_for(lambda: not any(is_alive(pid) for pid in parts))
        assert instance.find(data) is None
        metric_files.remove(Settings(data=data).metrics_folder)  # it is outside of the folder of the test

    def test_upgrades_the_tables_of_its_own_database(self, server_folder: Path) -> None:
        data, first = server_folder / "data", Schema.load().steps[0]

        async def create_older_tables(url: str) -> None:
            connection = await asyncpg.connect(url)
            await connection.execute(first.text)
            await record_version(connection, first.version, first.text)
            await connection.close()

        with (
            data_folder.claim(data, server_user()) as folder,
            Postgres(folder.postgres, socket_folder=folder.run / "postgres") as postgres,
        ):
            asyncio.run(create_older_tables(postgres.dsn))
        with up(data) as running:
            assert "Step 4 (unfinished uploads): done in" in running.text
            assert running.get(f"/v1/account?key={running.key}")[0] == 200
        with up(data) as again:
            assert "Step" not in again.text
        metric_files.remove(Settings(data=data).metrics_folder)  # it is outside of the folder of the test

    @pytest.mark.needs("curl")
    def test_terminal_shows_the_first_key_once(self, server_folder: Path, database_url: str, redis_url: str) -> None:
        data = server_folder / "some data"
        servers = {"DAGUERRE_DATABASE_URL": database_url, "DAGUERRE_REDIS_URL": redis_url}
        with up(data, env=servers, on_terminal=True) as first:
            assert first.text.count(first.key) == 1
            assert first.find(r"again: (.+)\r?\n").rstrip() == f"cat '{data}/first-key'"
            command = first.find(r"(curl (?:.+\\\r?\n)+.+)\r?\n").replace("\x1b[0m", "").replace("\r", "")
            assert '"success":true' in subprocess.check_output(["/bin/sh", "-c", command], text=True)
        with up(data, env=servers, on_terminal=True) as again:
            assert again.key not in again.text
            assert again.find(r"to see it: (.+)\r?\n").rstrip() == f"cat '{data}/first-key'"

    def test_restarts_killed_processes(self, server_folder: Path) -> None:
        with up(server_folder / "data", "--workers", "1") as started:
            killed = []
            for pattern in ("service.cli serve", "service.cli worker", "valkey-server", "bin/postgres -D"):
                pid = min(pid for pid, args in started.parts().items() if pattern in args)
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            for pid in killed:
                wait_for(lambda: f"(process {pid}) was killed by signal 9: starting it again" in started.text)  # noqa: B023
            key, sample = started.key, started.sample
            wait_for(lambda: started.get("/readyz")[0] == 200)
            wait_for(lambda: started.get(f"/v1/images?key={key}", sample.read_bytes())[0] == 200)
            assert not any(is_alive(pid) for pid in killed)
            log = (server_folder / "data" / "log" / "daguerre.log").read_text()
            assert log.count("program.restarted WARNING") == 4

    def test_restored_key_is_not_called_revoked(self, server_folder: Path, database_url: str, redis_url: str) -> None:
        servers = {"DAGUERRE_DATABASE_URL": database_url, "DAGUERRE_REDIS_URL": redis_url}
        with up(server_folder / "first", env=servers):
            pass
        with up(server_folder / "second", env=servers) as second:
            assert "revoked" not in second.text
            command = second.find(r"list the existing keys: (.+)")
            assert command == f"daguerre keys list default --data {server_folder / 'second'}"

    def test_failed_server_start_shows_its_reason(self, server_folder: Path) -> None:
        with up(server_folder / "data"):
            pass
        log = server_folder / "data" / "log" / "postgres.log"
        with log.open("a") as file:
            file.write("2026-11-28 10:00:00.000 UTC [1] FATAL:  an old reason\n")
        (server_folder / "data" / "postgres" / "cluster" / "global" / "pg_control").write_bytes(b"")
        with up(server_folder / "data", ready=False) as again:
            assert again.process.wait(30) == 1
        assert "could not read file" in again.text
        assert "an old reason" not in again.text
        assert "Traceback" not in again.text

    def test_uses_configured_servers(self, server_folder: Path, database_url: str, redis_url: str) -> None:
        servers = {"DAGUERRE_DATABASE_URL": database_url, "DAGUERRE_REDIS_URL": redis_url}
        with up(server_folder / "data", "--workers", "1", env=servers) as started:
            assert not [args for args in started.parts().values() if "postgres" in args or "valkey" in args]
            running = instance.find(server_folder / "data")
            assert running is not None
            assert (running.database_url, running.redis_url) == (database_url, redis_url)
            assert started.get("/readyz")[0] == 200


class TestObjectStore:
    def test_images_stay_in_it(self, server_folder: Path) -> None:
        data = server_folder / "data"
        with up(data, "--storage", "s3", env={"AWS_SESSION_TOKEN": "of other keys"}) as first:
            status, body = first.get(f"/v1/images?key={first.key}", first.sample.read_bytes())
            image = re.search(r'"id":"(\w+)"', body)
            assert (status, image is not None) == (200, True), body
            first.process.kill()
        assert image
        with up(data) as again:
            assert "SeaweedFS" in again.text
            assert again.get(f"/v1/images/{image[1]}?key={again.key}")[0] == 200
        metric_files.remove(Settings(data=data).metrics_folder)

    def test_trying_it_beside_a_folder_changes_nothing(self, server_folder: Path) -> None:
        data = server_folder / "data"
        with up(data) as first:
            _, body = first.get(f"/v1/images?key={first.key}", first.sample.read_bytes())
            image = re.search(r'"id":"(\w+)"', body)
            assert image, body
        with up(data, "--storage", "s3", ready=False) as refused:
            assert refused.process.wait(60) == 1
        assert "Daguerre's folders are missing, though images are stored" in refused.text
        with up(data) as again:
            assert "SeaweedFS" not in again.text
            assert again.get(f"/v1/images/{image[1]}?key={again.key}")[0] == 200
        metric_files.remove(Settings(data=data).metrics_folder)

    def test_another_storage_is_refused(self, server_folder: Path) -> None:
        env = {"DAGUERRE_STORAGE": str(server_folder / "storage")}
        with up(server_folder / "data", "--storage", "s3", env=env, ready=False) as refused:
            assert refused.process.wait(60) == 1
        assert "--storage s3 starts an object store of its own: unset DAGUERRE_STORAGE" in refused.text
