"""Two Valkeys, a primary and its replica, and three sentinels that watch them. All need a password."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis as sync_redis

from service.launcher.embedded import binaries
from tests.support.servers import PASSWORD, QUOTED_PASSWORD, SystemServer, free_port
from tests.support.waiting import wait_for

NAME = "mymaster"
USER = "shop"
SENTINEL_PASSWORD = "sentinels-only"


@dataclass(frozen=True)
class Sentinels:
    nodes: dict[int, SystemServer]
    sentinels: list[SystemServer]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{USER}:{QUOTED_PASSWORD}@{hosts}/{NAME}/0?sentinel_password={SENTINEL_PASSWORD}"

    def find_primary(self) -> SystemServer:
        """Returns the primary according to the first sentinel that answers."""
        for sentinel in self.sentinels:
            with _sentinel(sentinel.port) as client, suppress(sync_redis.ConnectionError):
                _, port = client.sentinel_get_master_addr_by_name(NAME)
                return self.nodes[int(port)]
        raise AssertionError("no sentinel answers")

    def fail_over(self) -> None:
        """Makes the sentinels demote the primary, although it works."""
        with _sentinel(self.sentinels[0].port) as client:
            client.execute_command("SENTINEL", "FAILOVER", NAME)

    def lose_jobs(self) -> None:
        with node_client(self.find_primary().port) as client:
            client.flushall()

    def wait_replicated(self) -> None:
        """Returns when the sentinels know each other and a replica that is in sync, so that a failover can work."""
        wait_for(lambda: all(_is_settled(sentinel.port, len(self.sentinels)) for sentinel in self.sentinels), 60)


def _is_settled(port: int, count: int) -> bool:
    with _sentinel(port) as client:
        state: dict[str, Any] = client.sentinel_master(NAME)
        replicas: list[dict[str, Any]] = client.sentinel_slaves(NAME)
    healthy = [replica for replica in replicas if replica["flags"] == "slave" and replica["master-link-status"] == "ok"]
    return state["num-other-sentinels"] == count - 1 and state["flags"] == "master" and bool(healthy)


def _sentinel(port: int) -> sync_redis.Redis:
    return sync_redis.Redis(port=port, password=SENTINEL_PASSWORD)


def node_client(port: int) -> sync_redis.Redis:
    return sync_redis.Redis(port=port, username=USER, password=PASSWORD)


@contextmanager
def sentinels_running(folder: Path) -> Iterator[Sentinels]:
    nodes = {port: _make_node(folder / str(port), port) for port in (free_port(), free_port())}
    primary, replica = nodes
    with ExitStack() as stack:
        for node in nodes.values():
            stack.enter_context(node)
        with node_client(replica) as client:
            client.replicaof("127.0.0.1", primary)
        sentinels = []
        for _ in range(3):
            port = free_port()
            sentinels.append(stack.enter_context(_make_sentinel(folder / str(port), port, primary)))
        running = Sentinels(nodes, sentinels)
        running.wait_replicated()
        yield running


def _make_node(folder: Path, port: int) -> SystemServer:
    folder.mkdir()
    (folder / "users.acl").write_text(
        f"user default off\nuser {USER} on >{PASSWORD} ~* &* +@all\nuser internal on >{SENTINEL_PASSWORD} ~* &* +@all\n"
    )
    settings = {
        "port": port,
        "bind": "127.0.0.1",
        "dir": folder,
        "save": "''",
        "appendonly": "yes",
        "aclfile": folder / "users.acl",
        "masteruser": "internal",
        "masterauth": SENTINEL_PASSWORD,
        "repl-diskless-sync-delay": 0,
    }
    conf = folder / "valkey.conf"
    conf.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    return SystemServer([binaries.valkey_server(), conf], port=port, folder=folder, name="valkey")


def _make_sentinel(folder: Path, port: int, primary: int) -> SystemServer:
    folder.mkdir()
    conf = folder / "sentinel.conf"
    conf.write_text(
        f"""
port {port}
bind 127.0.0.1
dir {folder}
requirepass {SENTINEL_PASSWORD}
sentinel sentinel-pass {SENTINEL_PASSWORD}
sentinel monitor {NAME} 127.0.0.1 {primary} 2
sentinel auth-user {NAME} internal
sentinel auth-pass {NAME} {SENTINEL_PASSWORD}
sentinel down-after-milliseconds {NAME} 1000
sentinel failover-timeout {NAME} 4000
"""
    )
    return SystemServer([binaries.valkey_server(), conf, "--sentinel"], port=port, folder=folder, name="sentinel")
