"""Heartbeats of the workers: a sorted set of their names by the time of the last heartbeat, in seconds.

All times are those of the clock of Redis, since the clocks of hosts differ. Earlier versions used the clock of the
worker's host, and may still do so during an upgrade. So a heartbeat from the near future counts like one from the near
past. One from a later time was recorded before the clock of Redis was set back, and is ignored: a worker that is alive
records the next one within a second.
"""

from __future__ import annotations

import secrets
import socket
from typing import Any

WORKERS_KEY = "daguerre:workers"
WORKER_ALIVE_S = 10
_REMOVE_AFTER_S = 60

_NOW = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
"""
_RECORD = (
    _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], now + ARGV[3], '+inf')
redis.call('ZADD', KEYS[1], now, ARGV[1])
"""
)
_LIST = _NOW + "return redis.call('ZRANGEBYSCORE', KEYS[1], now - ARGV[1], now + ARGV[1])"


def name_worker() -> str:
    """Returns a name for one worker, which begins with the name of its host."""
    return f"{socket.gethostname()}:{secrets.token_hex(4)}"


class Heartbeats:
    """The heartbeats of all workers of a queue. Every method raises the errors of redis-py."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._record = redis.register_script(_RECORD)
        self._list = redis.register_script(_LIST)

    async def record(self, name: str) -> None:
        """Records that the worker is alive, and removes workers without a heartbeat for a minute."""
        await self._record(keys=[WORKERS_KEY], args=[name, _REMOVE_AFTER_S, WORKER_ALIVE_S])

    async def remove(self, name: str) -> None:
        """Removes the heartbeat of a worker that stops."""
        await self._redis.zrem(WORKERS_KEY, name)

    async def list_alive(self) -> list[str]:
        """Returns the names of the workers with a recent heartbeat."""
        return [name.decode() for name in await self._list(keys=[WORKERS_KEY], args=[WORKER_ALIVE_S])]
