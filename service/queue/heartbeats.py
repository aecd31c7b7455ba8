"""Signs of life of the workers: a sorted set of their names by the time of the last sign, in seconds.

All times are those of the clock of Redis, since the clocks of hosts differ. The versions before wrote them by the clock
of the worker's host, and may still do so during an upgrade. So a sign from the near future counts like one of the near
past. One from later is older than a correction of the clock of Redis, and counts for nothing: a worker that lives gives
the next one within a second.
"""

from __future__ import annotations

import secrets
import socket
from typing import Any

WORKERS_KEY = "daguerre:workers"
WORKER_ALIVE_S = 10
_FORGET_WORKER_S = 60

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
    """Returns a name for one worker, which begins with its host's."""
    return f"{socket.gethostname()}:{secrets.token_hex(4)}"


class Heartbeats:
    """Of all workers of a queue. Every method raises the errors of redis-py."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._record = redis.register_script(_RECORD)
        self._list = redis.register_script(_LIST)

    async def record(self, name: str) -> None:
        """Records that the worker lives, and forgets those that have shown nothing for a minute."""
        await self._record(keys=[WORKERS_KEY], args=[name, _FORGET_WORKER_S, WORKER_ALIVE_S])

    async def remove(self, name: str) -> None:
        """Records that the worker has ended."""
        await self._redis.zrem(WORKERS_KEY, name)

    async def list_alive(self) -> list[str]:
        """Returns the names of the workers that have shown a sign of life lately."""
        return [name.decode() for name in await self._list(keys=[WORKERS_KEY], args=[WORKER_ALIVE_S])]
