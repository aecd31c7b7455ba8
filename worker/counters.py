"""The periodic job that holds the accounts' counters against the images themselves."""

from __future__ import annotations

import time
from typing import Any

import structlog

from service.accounts import list_stale, refresh_counters
from service.metrics import metrics
from worker.resources import Resources

log = structlog.get_logger("worker")

_BUDGET_S = 10
_AT_ONCE = 1000


async def refresh_accounts(ctx: dict[str, Any]) -> None:
    """Accounts that changed since their last refresh, oldest first, until the time is up."""
    worker: Resources = ctx["resources"]
    deadline = time.monotonic() + _BUDGET_S
    async with worker.database.connection() as connection:
        for account_id in await list_stale(connection, _AT_ONCE):
            drift = await refresh_counters(connection, account_id)
            if drift:
                metrics.counter_corrections.inc()
                log.warning("counters.drift", account_id=account_id, bytes=drift.bytes, images=drift.images)
            if time.monotonic() > deadline:
                break
