"""Whatever is wrong with the database, a setting or a value, a command ends with a sentence and no traceback."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import click
import pytest

from service.cli.common import with_database
from service.config.settings import Settings, SettingsError, load
from service.config.values import MAX_SIZE, parse_size
from service.launcher.embedded.postgres import Postgres
from service.storage.local.originals import LocalOriginals
from tests.conftest import Servers, Tenant
from tests.support.commands import daguerre

# One of every command that uses the database.
COMMANDS = [
    ("accounts", "list"),
    ("accounts", "create", "x"),
    ("accounts", "show", "demo"),
    ("accounts", "set", "demo", "--strip-location"),
    ("keys", "create", "demo"),
    ("keys", "list", "demo"),
    ("keys", "revoke", "1"),
    ("signing-keys", "create", "demo"),
    ("signing-keys", "list", "demo"),
    ("signing-keys", "revoke", "1"),
    ("presets", "set", "demo", "thumb", "width=300"),
    ("presets", "list", "demo"),
    ("presets", "delete", "demo", "thumb"),
    ("sign", "demo", "/i/NKrigl4"),
    ("verify",),
]


def names(commands: list[tuple[str, ...]]) -> list[str]:
    return [" ".join(command[:2]) for command in commands]


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    LocalOriginals(settings.storage_folder).prepare()
    return {"DAGUERRE_STORAGE": str(settings.storage_folder), "DAGUERRE_REDIS_URL": settings.redis_url}


def assert_sentence(done: subprocess.CompletedProcess[str], sentence: str) -> None:
    assert done.returncode in {1, 2}
    assert sentence in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert done.stdout == ""


@pytest.fixture(scope="module")
def server(servers: Servers) -> Iterator[Postgres]:
    """With a database without tables, and a user who may do nothing."""

    async def execute(*statements: str) -> None:
        connection = await asyncpg.connect(servers.postgres.dsn)
        for statement in statements:
            await connection.execute(statement)
        await connection.close()

    asyncio.run(execute("create role stranger login", "create database without_schema"))
    yield servers.postgres
    asyncio.run(execute("drop role stranger", "drop database without_schema"))


@pytest.mark.parametrize("command", COMMANDS, ids=names(COMMANDS))
class TestDatabase:
    def test_database_without_tables(
        self, server: Postgres, environment: dict[str, str], command: tuple[str, ...]
    ) -> None:
        done = daguerre(*command, database_url=server.dsn_of("without_schema"), **environment)
        assert_sentence(done, "run `daguerre schema`,")

    @pytest.mark.usefixtures("server")
    def test_user_without_permission(
        self, database_url: str, environment: dict[str, str], command: tuple[str, ...]
    ) -> None:
        done = daguerre(*command, database_url=database_url.replace("daguerre@", "stranger@", 1), **environment)
        assert_sentence(done, "The database cannot be used: permission denied for table")

    def test_unreachable_database(self, environment: dict[str, str], command: tuple[str, ...]) -> None:
        done = daguerre(*command, database_url="postgresql://127.0.0.1:1/x", **environment)
        assert_sentence(done, "database-unavailable" if command == ("verify",) else "The database cannot be reached")


WRITING = [command for command in COMMANDS if command[1:2] and command[1] in {"create", "set", "revoke", "delete"}]


@pytest.mark.parametrize("command", WRITING, ids=names(WRITING))
async def test_read_only_database(database_url: str, connection: Any, tenant: Tenant, command: tuple[str, ...]) -> None:
    await connection.execute("update accounts set name = 'demo'")
    done = daguerre(*command, database_url=f"{database_url}&default_transaction_read_only=on")
    assert_sentence(done, "The database cannot be used: cannot execute")


async def test_server_that_ends_a_command(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGUERRE_DATABASE_URL", database_url)

    async def work(connection: Any) -> None:
        await connection.execute("select pg_terminate_backend(pg_backend_pid())")

    with ThreadPoolExecutor(1) as thread, pytest.raises(click.ClickException, match="The database cannot be used: "):
        thread.submit(with_database, None, work).result()


NOTHING = "\0"
NO_TEXT = "\udcff"  # an argument that is no UTF-8


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("accounts", "create", "x", "--max-storage", "99999999999TB"), "is too large: the maximum"),
        (("accounts", "create", "x", "--max-storage", "9" * 400), "is too large: the maximum"),
        (("accounts", "create", "x", "--max-storage", "9223372036854775808"), "is too large: the maximum"),
        (("accounts", "create", "x" * 201), "1 to 200 printable characters"),
        (("accounts", "create", ""), "1 to 200 printable characters"),
        (("accounts", "create", NOTHING), "1 to 200 printable characters"),
        (("accounts", "create", NO_TEXT), "1 to 200 printable characters"),
        (("accounts", "create", "one\ntwo"), "1 to 200 printable characters"),
        (("accounts", "show", "x" * 100_000), "There is no account"),
        (("accounts", "show", NOTHING), "The database refuses a value"),
        (("keys", "list", NO_TEXT), "The database refuses a value"),
        (("keys", "revoke", "9" * 5000), "is not a valid integer"),
        (("keys", "revoke", "--", "-1"), "not in the range"),
        (("presets", "delete", "x", NOTHING), "There is no account"),
        (("presets", "set", "x", "y", "width=" + "9" * 5000), "at most 1000 characters"),
        (("schema", "--wait", "nan"), "is not a number of seconds"),
        (("schema", "--wait", "inf"), "not in the range"),
        (("serve", "--host", "a..b"), "is not an address to listen on"),
        (("serve", "--host", "a" * 300), "is not an address to listen on"),
        (("serve", "--fd", "999"), "--fd 999 is not a socket"),
    ],
)
def test_absurd_value(database_url: str, arguments: tuple[str, ...], sentence: str) -> None:
    assert_sentence(daguerre(*arguments, database_url=database_url), sentence)


@pytest.mark.parametrize("command", ["accounts list", "verify", "schema", "health worker", "worker", "serve"])
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("DATABASE_URL", "postgresql://host:many/x", "must be like scheme://user:password@host:port/name"),
        ("DATABASE_URL", "postgresql:///x?port=many", "must be like scheme://user:password@host:port/name"),
        ("DATABASE_URL", "postgresql://[::1/x", "must be like scheme://user:password@host:port/name"),
        ("DATABASE_URL", "postgresql://a..b/x", "'a..b' is not the name of a host"),
        ("REDIS_URL", "redis://host:99999/0", "must be like scheme://user:password@host:port/name"),
        ("WAIT_S", "nan", "must be a number from 0 to 86400, not 'nan'"),
    ],
)
def test_unusable_setting(command: str, name: str, value: str, reason: str) -> None:
    done = daguerre(*command.split(), **{f"DAGUERRE_{name}": value})
    assert_sentence(done, f"DAGUERRE_{name}: {reason}")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["verify", "health worker", "worker", "serve --processes 1 --port 0"])
@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("db=many", "Invalid value for 'db' in connection URL."),
        ("timeouts=5", "got an unexpected keyword argument 'timeouts'"),
    ],
)
def test_unusable_redis_option(
    settings: Settings, environment: dict[str, str], command: str, option: str, reason: str
) -> None:
    given = environment | {"DAGUERRE_REDIS_URL": f"redis://127.0.0.1/0?{option}", "DAGUERRE_DATA": str(settings.data)}
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", *command.split()],
        env={"DAGUERRE_DATABASE_URL": settings.database_url, **given},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"Error: DAGUERRE_REDIS_URL: {reason}"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "url", ["postgresql:///x?host=/run/postgresql", "postgresql://a:1,b:2/x", "postgres://[::1]/x"]
)
def test_usual_database_urls_are_accepted(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DAGUERRE_DATABASE_URL", url)
    assert load().database_url == url


NUMBERS = [
    name
    for name, field in Settings.model_fields.items()
    if field.annotation in {int, float} and name not in {"port", "metrics_port"}
]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e400", "9" * 400, "9" * 5000, "1e300"])
def test_absurd_number_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str) -> None:
    monkeypatch.setenv(f"DAGUERRE_{name.upper()}", value)
    with pytest.raises(SettingsError, match=f"DAGUERRE_{name.upper()}: "):
        load()


def test_size_is_exact_up_to_a_bigint() -> None:
    assert parse_size(str(MAX_SIZE)) == MAX_SIZE == 2**63 - 1
    assert parse_size("8388607TB") == 8388607 << 40
    assert parse_size("9007199254740993") == 2**53 + 1
    for text in (str(MAX_SIZE + 1), "8388608TB", "9" * 100, "1" + "0" * 64 + ".5k"):
        with pytest.raises(ValueError, match="is too large: the maximum"):
            parse_size(text)
