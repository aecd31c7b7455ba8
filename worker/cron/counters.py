"""The periodic job that holds the accounts' counters against the images themselves."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from service.accounts.accounts import AccountUnknown
from service.accounts.counters import list_stale, refresh_counters
from service.database import Connection, is_server_error
from service.dependencies.outages import level_of
from service.errors import ServiceError
from service.ids import AccountId
from service.telemetry.metrics import metrics
from worker.resources import Resources

log = structlog.get_logger("worker")

BUDGET_S = 10
# An account that holds a run up, by its size or by a lock on its row, leaves the others half of it. From then on it
# comes last, and has all that is left.
_FIRST_TRY_S = 5
_AT_ONCE = 1000


async def refresh_accounts(ctx: dict[str, Any]) -> None:
    """Accounts that changed since their last refresh, oldest first, until the time is up.

    One that cannot be refreshed keeps no other from it: in this process's next runs it comes behind all others.
    """
    try:
        await _refresh_stale(ctx["resources"])
    except ServiceError as error:
        log.log(level_of(error), "counters.put_off", error=repr(error))


async def _refresh_stale(worker: Resources) -> None:
    time = asyncio.get_running_loop().time
    ends_at = time() + BUDGET_S
    async with worker.database.connection() as connection:
        for account_id in await list_stale(connection, _AT_ONCE, worker.unrefreshed):
            is_first_try = account_id not in worker.unrefreshed
            worker.unrefreshed.pop(account_id, None)
            until = min(ends_at, time() + _FIRST_TRY_S) if is_first_try else ends_at
            try:
                async with asyncio.timeout_at(until):
                    await _refresh(connection, account_id)
            except AccountUnknown:
                continue  # it was deleted
            except Exception as error:
                if connection.is_closed() or is_server_error(error):
                    raise  # none can be refreshed
                if isinstance(error, TimeoutError) and is_first_try and until == ends_at:
                    break  # it came too late to have its time, and is among the first of the next run
                worker.unrefreshed[account_id] = None
                log.warning("counters.not_refreshed", account_id=account_id, error=repr(error))
            if time() >= ends_at:
                break


async def _refresh(connection: Connection, account_id: AccountId) -> None:
    drift = await refresh_counters(connection, account_id)
    if drift:
        metrics.counter_corrections.inc()
        log.warning("counters.drift", account_id=account_id, bytes=drift.bytes, images=drift.images)
