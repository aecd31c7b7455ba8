"""`daguerre health`, for health checks of containers.

The checks of API and worker are independent. /readyz needs a worker, so with it the API could not start before a
worker.
"""

from __future__ import annotations

import asyncio
import socket

import click

from service.cli.common import load_settings
from service.config.settings import Settings, SettingsError


@click.command()
@click.argument("part", type=click.Choice(["api", "worker"]))
def health(part: str) -> None:
    """Check that the API or a worker runs on this machine. The exit code is 1 if none does."""
    find_problem = find_api_problem if part == "api" else find_worker_problem
    try:
        problem = asyncio.run(find_problem(load_settings()))
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    if problem:
        raise click.ClickException(problem)


async def find_api_problem(settings: Settings) -> str | None:
    """Returns the problem in one sentence, or None if an API process responds."""
    from service.launcher import listening  # noqa: PLC0415

    response = await asyncio.to_thread(listening.get_from, settings.host, settings.port, "/healthz")
    if response.status == 200:
        return None
    return f"The API on {settings.host}, port {settings.port}, does not answer"


async def find_worker_problem(settings: Settings) -> str | None:
    """Returns the problem in one sentence, or None if a worker of this host takes jobs from the queue."""
    from service.errors import ServiceError  # noqa: PLC0415
    from service.queue import jobs  # noqa: PLC0415
    from service.queue.heartbeats import WORKER_ALIVE_S  # noqa: PLC0415

    redis = jobs.open_redis(settings.redis_url)
    try:
        if await jobs.JobQueue(redis).count_workers(host=socket.gethostname()):
            return None
    except ServiceError:
        return "DAGUERRE_REDIS_URL: the queue cannot be reached"
    finally:
        await redis.aclose(close_connection_pool=True)
    return f"No worker on {socket.gethostname()} has sent a heartbeat in the last {WORKER_ALIVE_S} s"
