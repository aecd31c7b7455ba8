"""Redis and PostgreSQL with TLS, client certificates, and passwords that a URL must encode."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest
import redis as sync_redis

from service.config.settings import Settings
from service.launcher.embedded.postgres import server_user
from service.launcher.process import run_as
from tests.conftest import Tenant, skip_or_fail
from tests.support.daguerre_processes import processes_of
from tests.support.folders import temporary_folder
from tests.support.journey import assert_is_discreet, run, succeed, travel
from tests.support.servers import (
    PASSWORD,
    QUOTED_PASSWORD,
    Authority,
    SystemServer,
    find_debian_postgres,
    free_port,
    redis_words,
)

pytestmark = [pytest.mark.slow, pytest.mark.needs("openssl")]

USER = "shop"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with temporary_folder() as path:
        yield path


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder / "certificates")


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Authority:
    """An authority that no server trusts."""
    return Authority(folder / "strangers")


@dataclass(frozen=True)
class Tls:
    """A server with TLS that requires certificates of its clients. `url` gets parameters that differ from the right
    ones; None leaves one out.
    """

    port: int
    url: Callable[..., str]


# Redis


@pytest.fixture(scope="module")
def redis_tls(folder: Path, authority: Authority) -> Iterator[Tls]:
    port = free_port()
    (folder / "redis").mkdir()
    certificate, client = authority.certify("redis"), authority.certify("redis-client")
    rules = "~daguerre:* ~arq:* &daguerre:* +@all -@admin -@dangerous +info"
    users = f"user default off\nuser {USER} on >{PASSWORD} {rules}\nuser root on >root ~* +@all\n"
    (folder / "users.acl").write_text(users)
    settings = {
        "port": 0,
        "tls-port": port,
        "bind": "127.0.0.1",
        "tls-cert-file": certificate,
        "tls-key-file": certificate.with_suffix(".key"),
        "tls-ca-cert-file": authority.certificate,
        "tls-auth-clients": "yes",
        "aclfile": folder / "users.acl",
        "dir": folder / "redis",
        "appendonly": "no",
    }

    def url(*, user: str = USER, password: str = QUOTED_PASSWORD, host: str = "127.0.0.1", **changes: object) -> str:
        parameters = {
            "ssl_ca_certs": authority.certificate,
            "ssl_certfile": client,
            "ssl_keyfile": client.with_suffix(".key"),
            **changes,
        }
        query = urlencode({name: value for name, value in parameters.items() if value is not None})
        return f"rediss://{user}:{password}@{host}:{port}/1?{query}"

    with SystemServer(["redis-server", *redis_words(settings)], port=port, folder=folder) as _:
        yield Tls(port, url)


async def find_reason(settings: Settings, tenant: Tenant, logs: Path, name: str) -> str:
    """Returns the reason in /readyz of an API process with these settings. Asserts that its log has no traceback."""
    async with processes_of(settings, tenant.key, logs) as daguerre:
        api = daguerre.start_api()
        await api.wait_logged("api.listening")
        response = await daguerre.get("/readyz")
        assert response.status == 503
        text = api.log.read_text()
        assert "guessed" not in text
        assert_is_discreet(text)
        return str(response.body["reasons"][name])


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"password": "guessed"}, "the password is wrong"),
        ({"ssl_certfile": None, "ssl_keyfile": None}, "requires a certificate"),
        ({"ssl_ca_certs": None}, "not trusted"),
        ({"host": "localhost"}, "for another host"),
        ({"host": "no-such-host.invalid"}, "the name of its host is unknown"),
    ],
    ids=["password", "no-certificate", "authority", "other-host", "unknown-host"],
)
async def test_wrong_parameter_of_redis_is_named(
    redis_tls: Tls, settings: Settings, tenant: Tenant, tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    changed = settings.model_copy(update={"redis_url": redis_tls.url(**changes)})
    assert reason in (await find_reason(changed, tenant, tmp_path / "logs", "queue")).replace("user or the ", "")


@pytest.mark.needs("redis-server")
async def test_certificate_of_a_stranger_is_named(
    redis_tls: Tls, settings: Settings, tenant: Tenant, stranger: Authority, tmp_path: Path
) -> None:
    client = stranger.certify("client")
    url = redis_tls.url(ssl_certfile=client, ssl_keyfile=client.with_suffix(".key"))
    changed = settings.model_copy(update={"redis_url": url})
    assert "does not trust" in await find_reason(changed, tenant, tmp_path / "logs", "queue")


@pytest.mark.needs("redis-server")
async def test_other_host_is_accepted_if_the_url_says_so(redis_tls: Tls, settings: Settings) -> None:
    url = redis_tls.url(host="localhost", ssl_check_hostname="no")
    done = run(settings.model_copy(update={"redis_url": url}), "health", "worker")
    assert "has sent a heartbeat" in done.stderr


# PostgreSQL


@pytest.fixture(scope="module")
def postgres_tls(folder: Path, authority: Authority) -> Iterator[Tls]:
    programs = find_debian_postgres()
    if programs is None:
        skip_or_fail("PostgreSQL of the system, which has TLS, is not installed")
    port, user = free_port(), server_user()
    certificate, client = authority.certify("postgres", user=user), authority.certify("client", subject=USER)
    place = folder / "postgres"
    place.mkdir()
    if user is not None:
        os.chown(place, user.uid, user.gid)
    cluster = place / "cluster"
    made = run_as(user, [programs / "initdb", "-A", "trust", "-U", "root", "-E", "UTF8", "--no-sync", "-D", cluster])
    assert made.returncode == 0, made.stderr
    rules = "local all root trust\nhostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-full\n"
    (cluster / "pg_hba.conf").write_text(rules)
    quoted = PASSWORD.replace("'", "''")
    setup = f"create role {USER} login password '{quoted}';\ncreate database {USER} owner {USER};\n"
    done = run_as(user, [programs / "postgres", "--single", "-D", cluster, "postgres"], setup)
    assert done.returncode == 0, done.stderr
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": place,
        "fsync": "off",
        "ssl": "on",
        "ssl_cert_file": certificate,
        "ssl_key_file": certificate.with_suffix(".key"),
        "ssl_ca_file": authority.certificate,
    }
    words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]

    def url(*, user: str = USER, password: str = QUOTED_PASSWORD, host: str = "127.0.0.1", **changes: object) -> str:
        parameters = {
            "sslmode": "verify-full",
            "sslrootcert": authority.certificate,
            "sslcert": client,
            "sslkey": client.with_suffix(".key"),
            **changes,
        }
        query = urlencode({name: value for name, value in parameters.items() if value is not None})
        return f"postgresql://{user}:{password}@{host}:{port}/{USER}?{query}"

    argv: list[str | Path] = [programs / "postgres", "-D", cluster, *words]
    with SystemServer(argv, port=port, folder=folder, user=user, name="postgres") as _:
        yield Tls(port, url)


@pytest.mark.needs("redis-server")
async def test_everything_works_with_tls(postgres_tls: Tls, redis_tls: Tls, settings: Settings, tmp_path: Path) -> None:
    """An ordinary role owns the database. The first of two hosts of PostgreSQL is down."""
    database_url = postgres_tls.url(host="127.0.0.1:1,127.0.0.1", target_session_attrs="read-write")
    changes = {"database_url": database_url, "redis_url": redis_tls.url(), "wait_s": 2, "rate_limit": "1000/s"}
    changed = Settings(**settings.model_copy(update=changes).model_dump(exclude_unset=True))
    with sync_redis.Redis.from_url(redis_tls.url(user="root", password="root")) as client:
        await travel(changed, tmp_path / "logs", lose_jobs=client.flushdb)
    succeed(changed, "backup", str(tmp_path / "backup"))
    encrypted = "select count(*) from pg_stat_ssl where ssl and client_dn like '%shop%' and pid = pg_backend_pid()"
    assert int(succeed(changed, "psql", "--", "-Atc", encrypted)) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"password": "guessed"}, "password is wrong"),
        ({"sslcert": None, "sslkey": None}, "does not admit"),
        ({"sslmode": "disable"}, "does not admit"),
        ({"host": "localhost"}, "for another host"),
        ({"host": "no-such-host.invalid"}, "the name of its host is unknown"),
    ],
    ids=["password", "no-certificate", "no-tls", "other-host", "unknown-host"],
)
async def test_wrong_parameter_of_postgres_is_named(
    postgres_tls: Tls, settings: Settings, tenant: Tenant, tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    (settings.storage_folder / "incoming").mkdir(exist_ok=True)
    changed = settings.model_copy(update={"database_url": postgres_tls.url(**changes)})
    assert reason in await find_reason(changed, tenant, tmp_path / "logs", "database")
    done = run(changed, "schema", "--wait", "0")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "guessed" not in done.stderr


async def test_unknown_authority_of_postgres_is_named(
    postgres_tls: Tls, settings: Settings, tenant: Tenant, stranger: Authority, tmp_path: Path
) -> None:
    (settings.storage_folder / "incoming").mkdir(exist_ok=True)
    url = postgres_tls.url(sslrootcert=stranger.certificate)
    changed = settings.model_copy(update={"database_url": url})
    assert "not trusted" in await find_reason(changed, tenant, tmp_path / "logs", "database")


async def test_server_without_tls_is_named(settings: Settings, tenant: Tenant, tmp_path: Path) -> None:
    """PgBouncer and others answer a request for TLS in the same way."""
    (settings.storage_folder / "incoming").mkdir(exist_ok=True)

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"N")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        url = f"postgresql://u@127.0.0.1:{server.sockets[0].getsockname()[1]}/x?sslmode=require"
        changed = settings.model_copy(update={"database_url": url})
        assert "offers no TLS" in await find_reason(changed, tenant, tmp_path / "logs", "database")
