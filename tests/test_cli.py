"""The operator's commands, as processes; their output is read by scripts."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from service.database import apply_schema
from service.embedded import folder
from service.embedded.postgres import Postgres
from service.storage.disk import DiskStorage
from tests.conftest import Client


def daguerre(*arguments: str, database_url: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    given = {"DAGUERRE_DATABASE_URL": database_url} if database_url else {}
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        env={"PATH": os.environ["PATH"], **given, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


async def test_a_new_account_prints_its_key_alone_on_the_last_line(database_url: str, api: Client) -> None:
    done = daguerre("accounts", "create", "demo", "--max-storage", "2GB", database_url=database_url)
    assert done.returncode == 0, done.stderr
    key = done.stdout.splitlines()[-1]
    answer = await (await api.get("/v1/account", params={"key": key})).json()
    assert answer["response"]["storage"]["max"] == 2 << 30


async def test_keys_are_created_listed_and_revoked(database_url: str, api: Client) -> None:
    first = daguerre("accounts", "create", "demo", database_url=database_url).stdout.strip()
    second = daguerre("keys", "create", "demo", database_url=database_url).stdout.splitlines()[-1]
    listed = daguerre("keys", "list", "demo", database_url=database_url).stdout
    assert first[:6] in listed
    assert second[:6] in listed
    assert first not in listed
    [number] = [line.split()[0] for line in listed.splitlines() if first[:6] in line]
    assert daguerre("keys", "revoke", number, database_url=database_url).returncode == 0
    assert "revoked" in daguerre("keys", "list", "demo", database_url=database_url).stdout
    assert (await api.get("/v1/account", params={"key": first})).status == 401
    assert (await api.get("/v1/account", params={"key": second})).status == 200


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("keys", "list", "nobody"), "There is no account 'nobody'"),
        (("keys", "create", "nobody"), "There is no account 'nobody'"),
        (("keys", "revoke", "999"), "There is no active key 999"),
        (("accounts", "create", "x", "--max-storage", "much"), "'much' is not a size"),
    ],
)
async def test_what_cannot_be_done_is_one_sentence(
    database_url: str, arguments: tuple[str, ...], sentence: str
) -> None:
    done = daguerre(*arguments, database_url=database_url)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


async def test_a_second_account_of_a_name_is_refused_and_makes_no_key(database_url: str) -> None:
    daguerre("accounts", "create", "demo", database_url=database_url)
    again = daguerre("accounts", "create", "demo", database_url=database_url)
    assert again.returncode != 0
    assert "There is an account 'demo' already" in again.stderr
    assert len(daguerre("keys", "list", "demo", database_url=database_url).stdout.splitlines()) == 2


def test_without_a_running_daguerre_the_way_to_start_one_is_told(tmp_path: Path) -> None:
    done = daguerre("accounts", "list", "--data", str(tmp_path))
    assert done.returncode != 0
    assert f"No Daguerre is running on {tmp_path}" in done.stderr
    assert "./run up" in done.stderr


def test_a_database_that_is_away_is_one_sentence() -> None:
    done = daguerre("accounts", "list", database_url="postgresql://127.0.0.1:1/x")
    assert "The database cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DAGUERRE_MAX_UPLOAD", "plenty"),
        ("DAGUERRE_DATABASE_URL", "mysql://localhost/x"),
        ("DAGUERRE_REDIS_URL", "localhost:6379"),
    ],
)
def test_a_bad_setting_is_one_sentence(name: str, value: str) -> None:
    done = daguerre("serve", **{name: value})
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {name}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [("serve", "--port", "0"), ("serve", "--port", "0", "--processes", "1"), ("worker",)]
)
def test_a_storage_that_cannot_be_used_is_one_sentence(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "storage"
    done = daguerre(*arguments, DAGUERRE_STORAGE=str(folder), DAGUERRE_METRICS=str(tmp_path / "metrics"))
    assert done.returncode == 1
    assert done.stderr == f"Error: DAGUERRE_STORAGE (or DAGUERRE_DATA): {folder} cannot be used: not a directory\n"


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = daguerre("serve", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: Port {port} on 127.0.0.1 is in use")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://127.0.0.1:1/x", "Connect call failed"),
        ("postgresql://nowhere.invalid/x", ""),
    ],
)
def test_a_schema_that_cannot_be_applied_is_one_sentence(url: str, reason: str) -> None:
    done = daguerre("schema", "--wait", "0", database_url=url)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: DAGUERRE_DATABASE_URL: the database cannot be used: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


async def test_the_schema_waits_for_a_database_that_is_starting() -> None:
    with folder.scratch() as place:
        postgres = Postgres(place / "pg", settings={"fsync": "off"})
        applying = asyncio.create_task(apply_schema(postgres.dsn, patience_s=20))
        await asyncio.sleep(0.2)
        assert not applying.done()
        with postgres:
            await applying


def test_a_port_for_metrics_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    DiskStorage(tmp_path / "storage").prepare()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = daguerre("worker", DAGUERRE_DATA=str(tmp_path), DAGUERRE_METRICS_PORT=str(port))
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: DAGUERRE_METRICS_PORT: 127.0.0.1:{port} cannot be listened on")
    assert done.stderr.count("\n") == 1
