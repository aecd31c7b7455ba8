"""URLs of PostgreSQL and Redis that cannot be used are refused in a sentence that quotes no password."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.config.servers import check_database_url, check_redis_url
from service.config.settings import SettingsError, load

SECRET = "s3cret"
# The parts of a password around a character that ended it.
CUT = ["s3@cret", "s3/cret", "s3?cret", "s3#cret", "s3?x=cret", "s3:cret@x", "s3℀cret"]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://localhost/daguerre",
        "postgres://user:p%40ss%2Fword@db.example.com:5433/x?sslmode=require",
        "postgresql://user@/x?host=/run/postgresql",
        "postgresql://user@%2Frun%2Fpostgresql/x",
        "postgresql://a:1,b:2/x?target_session_attrs=read-write",
        "postgresql:///x",
    ],
)
def test_usual_database_urls_are_accepted(url: str) -> None:
    assert check_database_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:6379/0",
        "rediss://user:p%40ss@cache.example.com/2?ssl_cert_reqs=none",
        "unix:///run/valkey.sock?db=1",
        "unix://user:secret@/run/valkey.sock",
        "redis+sentinel://a:26379,b,c:26380/mymaster/3",
        "rediss+sentinel://:p%40ss@a/my-master?sentinel_password=x",
    ],
)
def test_usual_redis_urls_are_accepted(url: str) -> None:
    assert check_redis_url(url) == url


@pytest.mark.parametrize("password", CUT)
@pytest.mark.parametrize("name", ["DATABASE_URL=postgresql", "REDIS_URL=redis", "REDIS_URL=redis+sentinel"])
def test_unencoded_password_is_not_quoted(monkeypatch: pytest.MonkeyPatch, name: str, password: str) -> None:
    variable, _, scheme = name.partition("=")
    monkeypatch.setenv(f"DAGUERRE_{variable}", f"{scheme}://user:{password}@db/mymaster/0")
    with pytest.raises(SettingsError) as error:
        load()
    assert "%40" in str(error.value)
    assert "s3" not in str(error.value)
    assert "cret" not in str(error.value)


@pytest.mark.parametrize("port", ["65536", "x", "-1"])
def test_port_that_is_none_is_refused(port: str) -> None:
    for check, scheme in ((check_database_url, "postgresql"), (check_redis_url, "redis")):
        with pytest.raises(ValueError, match="port up to 65535"):
            check(f"{scheme}://user:{SECRET}@host:{port}/0")


def test_sentinels_without_a_name_are_refused() -> None:
    for path in ("", "/", "/name/x", "/name/0/1"):
        with pytest.raises(ValueError, match="must name the primary"):
            check_redis_url(f"redis+sentinel://user:{SECRET}@host{path}")


@pytest.mark.parametrize("parameter", ["channel_binding=require", "connect_timeout=10"])
def test_parameter_that_asyncpg_lacks_is_named(parameter: str) -> None:
    with pytest.raises(ValueError, match=f"{parameter.partition('=')[0]} is not supported"):
        check_database_url(f"postgresql://user:{SECRET}@host/x?{parameter}")


def test_parameter_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="parameter=value"):
        check_database_url("postgresql://host/x?sslmode")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sslrootcert", "holds no certificate"),
        ("sslcert", "must be a certificate and its key"),
    ],
)
def test_file_that_is_no_certificate_is_named(tmp_path: Path, name: str, words: str) -> None:
    file = tmp_path / "file.pem"
    file.write_text("nothing")
    with pytest.raises(ValueError, match=words):
        check_database_url(f"postgresql://host/x?{name}={file}")


@pytest.mark.parametrize("name", ["ssl_ca_certs", "ssl_certfile"])
def test_missing_file_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: /nowhere.pem cannot be read: no such file"):
        check_redis_url(f"rediss://host/0?{name}=/nowhere.pem")


def test_key_without_a_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="ssl_keyfile needs ssl_certfile"):
        check_redis_url("rediss://host/0?ssl_keyfile=/nowhere.pem")
