"""The operator's commands; their output is read by scripts.

Each group of them runs as a process too. The rest is called here, which takes a fraction of the time.
"""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.cli.common import locate
from service.launcher.embedded import instance
from service.launcher.embedded.postgres import Postgres
from service.renditions import signatures
from service.schema.changes import create_schema
from service.storage.local.originals import LocalOriginals
from tests.conftest import Client
from tests.support.commands import daguerre, daguerre_process
from tests.support.folders import temporary_folder

Run = Callable[..., subprocess.CompletedProcess[str]]


async def test_new_account_prints_its_key_last(database_url: str, api: Client) -> None:
    done = daguerre_process("accounts", "create", "demo", "--max-storage", "2GB", database_url=database_url)
    assert done.returncode == 0, done.stderr
    key = done.stdout.splitlines()[-1]
    answer = await (await api.get("/v1/account", params={"key": key})).json()
    assert answer["response"]["storage"]["max"] == 2 << 30


async def test_keys_are_created_listed_and_revoked(database_url: str, api: Client) -> None:
    first = daguerre("accounts", "create", "demo", database_url=database_url).stdout.strip()
    second = daguerre_process("keys", "create", "demo", database_url=database_url).stdout.splitlines()[-1]
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
        (("keys", "revoke", "9" * 20), "not in the range"),
        (("accounts", "create", "x", "--max-storage", "much"), "'much' is not a size"),
        (("accounts", "show", "nobody"), "There is no account 'nobody'"),
        (("accounts", "set", "nobody", "--strip-location"), "There is no account 'nobody'"),
        (("accounts", "set", "nobody"), "Nothing to set"),
        (("signing-keys", "create", "nobody"), "There is no account 'nobody'"),
        (("signing-keys", "list", "nobody"), "There is no account 'nobody'"),
        (("signing-keys", "revoke", "999"), "There is no active signing key 999"),
        (("presets", "set", "nobody", "thumb", "width=300"), "There is no account 'nobody'"),
        (("presets", "set", "nobody", "Thumb", "width=300"), "A preset's name has 1 to 64 lower-case letters"),
        (("presets", "set", "nobody", "thumb", "width=wide"), "width"),
        (("presets", "list", "nobody"), "There is no account 'nobody'"),
        (("presets", "delete", "nobody", "thumb"), "There is no account 'nobody'"),
        (("sign", "nobody", "/i/NKrigl4"), "There is no account 'nobody'"),
        (("sign", "nobody", "/i/NKrigl4", "--expires", "soon"), "'soon' is not a time"),
        (("sign", "nobody", "/i/NKrigl4", "--expires", "3600"), "'3600' is in the past"),
    ],
)
async def test_failure_is_one_sentence(database_url: str, arguments: tuple[str, ...], sentence: str) -> None:
    done = daguerre(*arguments, database_url=database_url)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


async def test_account_is_shown_and_set(database_url: str) -> None:
    def shown() -> dict[str, str]:
        done = daguerre("accounts", "show", "demo", database_url=database_url)
        assert done.returncode == 0, done.stderr
        return dict(re.split(r" {2,}", line) for line in done.stdout.splitlines())

    def change(*options: str) -> str:
        done = daguerre("accounts", "set", "demo", *options, database_url=database_url)
        assert (done.returncode, done.stdout) == (0, "")
        return done.stderr

    daguerre("accounts", "create", "demo", database_url=database_url)
    assert shown() == {
        "NAME": "demo",
        "IMAGES": "0",
        "USED": "0 bytes",
        "MAX": "2 GB",
        "STATE": "active",
        "SIGNATURE": "not required",
        "LOCATION": "kept",
        "SIGNING KEYS": "0",
        "PRESETS": "0",
    }
    assert "It has no signing key" in change("--require-signature")
    daguerre("signing-keys", "create", "demo", database_url=database_url)
    assert "It has no signing key" not in change("--strip-location")
    assert shown().items() >= {"SIGNATURE": "required", "LOCATION": "stripped", "SIGNING KEYS": "1"}.items()
    change("--no-require-signature", "--keep-location")
    assert shown().items() >= {"SIGNATURE": "not required", "LOCATION": "kept"}.items()


async def test_signing_keys_are_created_listed_and_revoked(database_url: str) -> None:
    daguerre("accounts", "create", "demo", database_url=database_url)
    created = [daguerre("signing-keys", "create", "demo", database_url=database_url) for _ in range(3)]
    assert [done.returncode for done in created] == [0, 0, 1]
    assert "already has 2 active signing keys" in created[2].stderr
    first, second = (done.stdout.strip() for done in created[:2])
    assert len(first) == len(second) == 43
    listed = daguerre_process("signing-keys", "list", "demo", database_url=database_url).stdout
    [number] = [line.split()[0] for line in listed.splitlines() if first[:6] in line]
    assert second[:6] in listed
    assert first[:10] not in listed
    assert daguerre("signing-keys", "revoke", number, database_url=database_url).returncode == 0
    assert "revoked" in daguerre("signing-keys", "list", "demo", database_url=database_url).stdout
    assert daguerre("signing-keys", "create", "demo", database_url=database_url).returncode == 0


async def test_presets_are_set_listed_and_deleted(database_url: str) -> None:
    daguerre("accounts", "create", "demo", database_url=database_url)
    parameters = "width=300&height=300&fit=cover"
    done = daguerre("presets", "set", "demo", "thumb", parameters, database_url=database_url)
    assert done.returncode == 0
    assert "effective everywhere within 5 seconds" in done.stderr
    [_, line] = daguerre_process("presets", "list", "demo", database_url=database_url).stdout.splitlines()
    assert line.split()[0] == "thumb"
    assert line.endswith(parameters)
    assert daguerre("presets", "delete", "demo", "thumb", database_url=database_url).returncode == 0
    again = daguerre("presets", "delete", "demo", "thumb", database_url=database_url)
    assert again.returncode == 1
    assert "Account 'demo' has no preset 'thumb'" in again.stderr
    assert len(daguerre("presets", "list", "demo", database_url=database_url).stdout.splitlines()) == 1


async def test_sign_prints_a_url_with_the_newest_key(database_url: str) -> None:
    def sign(*arguments: str, run: Run = daguerre) -> subprocess.CompletedProcess[str]:
        return run(
            "sign", "demo", *arguments, database_url=database_url, DAGUERRE_PUBLIC_URL="https://img.example.com/"
        )

    daguerre("accounts", "create", "demo", database_url=database_url)
    assert "has no signing key" in sign("/i/NKrigl4").stderr
    daguerre("signing-keys", "create", "demo", database_url=database_url)
    secret = daguerre("signing-keys", "create", "demo", database_url=database_url).stdout.strip()
    target = "/i/NKrigl4/red-car.jpg?width=300"
    assert sign(target, run=daguerre_process).stdout == f"https://img.example.com{signatures.sign(target, secret)}\n"
    elsewhere = f"http://cdn.example.com{target}"
    assert sign(elsewhere, "--expires", "4000000000").stdout.strip() == signatures.sign(
        elsewhere, secret, expires=4_000_000_000
    )
    now = time.time()
    signed = sign(target, "--expires", "7d").stdout.strip().removeprefix("https://img.example.com")
    expiry = signatures.verify(signed, [secret], now=now)
    assert expiry is not None
    assert int(now) + 7 * 86400 <= expiry <= time.time() + 7 * 86400
    for arguments, sentence in [(("/i/NKrigl4#top",), "A fragment"), ((target, "--expires", "9999999d"), "11 digits")]:
        refused = sign(*arguments)
        assert refused.returncode != 0
        assert sentence in refused.stderr
        assert "Traceback" not in refused.stderr
        assert refused.stdout == ""


def test_running_daguerre_gives_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "http://127.0.0.1:1234"
    found = instance.Instance(1, "postgresql:///x", "unix:///x", address, address)
    monkeypatch.setattr(instance, "find", lambda _: found)
    monkeypatch.delenv("DAGUERRE_DATABASE_URL", raising=False)
    monkeypatch.delenv("DAGUERRE_PUBLIC_URL", raising=False)
    assert locate(tmp_path).public_url == address
    monkeypatch.setenv("DAGUERRE_PUBLIC_URL", "https://img.example.com")
    assert locate(tmp_path).public_url == "https://img.example.com"
    assert locate(tmp_path).database_url == found.database_url


async def test_duplicate_account_is_refused(database_url: str) -> None:
    daguerre("accounts", "create", "demo", database_url=database_url)
    again = daguerre("accounts", "create", "demo", database_url=database_url)
    assert again.returncode != 0
    assert "Account 'demo' already exists" in again.stderr
    assert len(daguerre("keys", "list", "demo", database_url=database_url).stdout.splitlines()) == 2


def test_missing_daguerre_is_explained(tmp_path: Path) -> None:
    done = daguerre_process("accounts", "list", "--data", str(tmp_path))
    assert done.returncode != 0
    assert f"No Daguerre is running on {tmp_path}" in done.stderr
    assert "./run up" in done.stderr


def test_unreachable_database_is_one_sentence() -> None:
    done = daguerre_process("accounts", "list", database_url="postgresql://127.0.0.1:1/x")
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
def test_bad_setting_is_one_sentence(name: str, value: str) -> None:
    done = daguerre_process("serve", **{name: value})
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {name}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("serve", "--port", "0"), ("serve", "--port", "0", "--processes", "1"), ("worker",)]
)
def test_unusable_storage_is_one_sentence(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    storage = tmp_path / "file" / "storage"
    done = daguerre_process(*arguments, DAGUERRE_STORAGE=str(storage), DAGUERRE_METRICS_DIR=str(tmp_path / "metrics"))
    assert done.returncode == 1
    assert done.stderr == f"Error: DAGUERRE_STORAGE (or DAGUERRE_DATA): {storage} cannot be used: not a directory\n"


@pytest.mark.slow
def test_port_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = daguerre_process("serve", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: Port {port} on 127.0.0.1 is in use")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://127.0.0.1:1/x", "Connect call failed"),
        ("postgresql://nowhere.invalid/x", ""),
    ],
)
def test_failed_schema_is_one_sentence(url: str, reason: str) -> None:
    done = daguerre_process("schema", "--wait", "0", database_url=url)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: DAGUERRE_DATABASE_URL: the database cannot be used: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
async def test_schema_waits_for_a_starting_database() -> None:
    with temporary_folder() as place:
        postgres = Postgres(place / "pg", settings={"fsync": "off"})
        applying = asyncio.create_task(create_schema(postgres.dsn, patience_s=20))
        await asyncio.sleep(0.2)
        assert not applying.done()
        with postgres:
            await applying


@pytest.mark.slow
def test_metrics_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    LocalOriginals(tmp_path / "storage").prepare()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = daguerre_process("worker", DAGUERRE_DATA=str(tmp_path), DAGUERRE_METRICS_PORT=str(port))
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: DAGUERRE_METRICS_PORT: 127.0.0.1:{port} cannot be listened on")
    assert done.stderr.count("\n") == 1
