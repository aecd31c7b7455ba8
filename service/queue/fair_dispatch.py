"""Fair dispatch: chooses the next job of a queue by round robin over the accounts.

arq's sorted set of the queue remains authoritative for which jobs exist. Each queue has these additional keys:

- `…:line:ACCOUNT`, a sorted set of the account's waiting jobs by the time that they are due;
- `…:turns`, a sorted set of the accounts that have a line, by their turn. Each turn runs one job, and the next turn of
  its account comes after those of all other accounts (round robin). So a claim costs the same however long a line is;
- `…:later`, a sorted set of jobs in no line, by the time to check them again: a running job when its lease ends, and a
  retried job when it is due;
- `…:accounts`, a hash of the account of each job that is in a line or in `…:later`.

A job that is only in arq's set comes from a plain arq client, or from a version before these keys. Workers search for
such jobs, and add them to a separate line under the account "".
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class FairQueueKeys(NamedTuple):
    """The Redis keys of a queue in addition to arq's own key; `line` is a prefix."""

    turns: str
    later: str
    accounts: str
    line: str

    @classmethod
    def of(cls, queue: str) -> FairQueueKeys:
        return cls(f"{queue}:turns", f"{queue}:later", f"{queue}:accounts", f"{queue}:line:")


def others_wakeup_key(wakeup_key: str) -> str:
    """Returns the key of the wake-up list for workers that have no room for jobs of some accounts.

    It gets a token for each account that got a line. Tokens for every job go to `wakeup_key` itself, where workers wait
    that take the jobs of any account.
    """
    return f"{wakeup_key}:others"


# Lua functions to prepend to scripts that add jobs to lines.
JOIN = Path(__file__).with_name("join.lua").read_text()
