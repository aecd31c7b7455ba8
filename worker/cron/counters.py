"""The periodic job that corrects the counters of accounts by counting their images."""

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
# An account that is slow because of its size or a lock on its row may use half of its first run. In later runs it comes
# last, and may use all remaining time.
FIRST_TRY_S = 5
_BATCH_SIZE = 1000


async def refresh_accounts(
    ctx: dict[str, Any], *, budget_s: float = BUDGET_S, first_try_s: float = FIRST_TRY_S
) -> None:
    """Refreshes the accounts that changed since their last refresh, the oldest first, for `budget_s`.

    A failure delays no other account: in later runs of this process the account comes after all others.
    """
    try:
        await _refresh_stale(ctx["resources"], budget_s, first_try_s)
    except ServiceError as error:
        log.log(level_of(error), "counters.deferred", error=repr(error))


async def _refresh_stale(worker: Resources, budget_s: float, first_try_s: float) -> None:
    time = asyncio.get_running_loop().time
    ends_at = time() + budget_s
    async with worker.database.connection() as connection:
        for account_id in await list_stale(connection, _BATCH_SIZE, worker.failed_refreshes):
            is_first_try = account_id not in worker.failed_refreshes
            worker.failed_refreshes.pop(account_id, None)
            deadline = min(ends_at, time() + first_try_s) if is_first_try else ends_at
            try:
                async with asyncio.timeout_at(deadline):
                    await _refresh(connection, account_id)
            except AccountUnknown:
                continue  # it was deleted
            except Exception as error:
                if connection.is_closed() or is_server_error(error):
                    raise  # it concerns all accounts
                if isinstance(error, TimeoutError) and is_first_try and deadline == ends_at:
                    break  # it had less than its time limit, and will be among the first of the next run
                worker.failed_refreshes[account_id] = None
                log.warning("counters.refresh_failed", account_id=account_id, error=repr(error))
            if time() >= ends_at:
                break


async def _refresh(connection: Connection, account_id: AccountId) -> None:
    drift = await refresh_counters(connection, account_id)
    if drift:
        metrics.counter_corrections.inc()
        log.warning("counters.corrected", account_id=account_id, bytes=drift.bytes, images=drift.images)
