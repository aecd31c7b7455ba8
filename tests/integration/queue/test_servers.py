"""What the URL of Redis says reaches each connection. Real sentinels are in tests/e2e/test_sentinel.py."""

from __future__ import annotations

from typing import Any

import pytest

from service.config.settings import SettingsError
from service.queue.servers import open_pool


def open_url(url: str) -> Any:
    return open_pool(url, timeout_s=5, connect_timeout_s=2, max_connections=4)


async def test_sentinel_url_is_for_the_primary() -> None:
    pool = open_url("redis+sentinel://shop:p%40ss@a,b:1234/my%2Fmaster/3?sentinel_password=other")
    connection = pool.make_connection()
    assert (connection.username, connection.password, connection.db) == ("shop", "p@ss", 3)
    assert pool.service_name == "my/master"
    sentinels = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
    assert [(one["host"], one["port"]) for one in sentinels] == [("a", 26379), ("b", 1234)]
    assert {(one["username"], one["password"], one["db"]) for one in sentinels} == {(None, "other", 0)}
    assert sum(one["socket_connect_timeout"] for one in sentinels) < 2


async def test_sentinels_and_servers_share_the_parameters_for_tls() -> None:
    pool = open_url("rediss+sentinel://a/mymaster?ssl_cert_reqs=none")
    connections = [pool.make_connection(), pool.sentinel_manager.sentinels[0].connection_pool.make_connection()]
    for connection in connections:
        assert connection.ssl_context.get().verify_mode.name == "CERT_NONE"


@pytest.mark.parametrize(("query", "is_checked"), [("", True), ("?ssl_check_hostname=no", False)])
async def test_host_of_the_certificate_is_checked(query: str, is_checked: bool) -> None:
    for url in ("rediss://a/0", "rediss+sentinel://a/mymaster"):
        context = open_url(f"{url}{query}").make_connection().ssl_context.get()
        assert context.check_hostname == is_checked
        assert context.verify_mode.name == "CERT_REQUIRED"


@pytest.mark.parametrize(
    "url",
    ["redis://u:s3cret@a/0?typo=1", "redis+sentinel://u:s3cret@a/m?typo=1", "rediss://u:s3cret@a?ssl_cert_reqs=x"],
)
async def test_unusable_parameter_is_a_sentence(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^DAGUERRE_REDIS_URL: ") as error:
        open_url(url)
    assert "s3cret" not in str(error.value)
