"""Whether the processes of this machine live, as a container's health check asks.

Neither answer depends on the other side: with /readyz, which needs a worker, a service could not start before one.
"""

from __future__ import annotations

import asyncio
import socket

from service.config.settings import Settings
from service.errors import ServiceError
from service.launcher import listening
from service.queue import jobs
from service.queue.heartbeats import WORKER_ALIVE_S


async def find_api_problem(settings: Settings) -> str | None:
    """One sentence, or None while an API process answers."""
    answer = await asyncio.to_thread(listening.get_from, settings.host, settings.port, "/healthz")
    if answer.status == 200:
        return None
    return f"The API on {settings.host}, port {settings.port}, does not answer"


async def find_worker_problem(settings: Settings) -> str | None:
    """One sentence, or None while a worker of this host works on the queue."""
    redis = jobs.open_redis(settings.redis_url)
    try:
        if await jobs.JobQueue(redis).count_workers(host=socket.gethostname()):
            return None
    except ServiceError:
        return "DAGUERRE_REDIS_URL: the queue cannot be reached"
    finally:
        await redis.aclose(close_connection_pool=True)
    return f"No worker on {socket.gethostname()} has shown a sign of life in the last {WORKER_ALIVE_S} s"
