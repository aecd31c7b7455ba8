"""Fair dispatch: which waiting job of a queue runs next, by turns of the accounts.

arq's sorted set of the queue stays the truth about which jobs there are. Each queue has these keys beside it:

- `…:line:ACCOUNT`, a sorted set of the account's waiting jobs by the time that they are due;
- `…:turns`, a sorted set of the accounts that have a line, by their turn. Each turn runs one job, and the next turn of
  its account comes after those of all other accounts (round robin). So a claim costs the same however long a line is;
- `…:later`, a sorted set of jobs in no line, by the time to check them again: a running job when its lease ends, and a
  retried job when it is due;
- `…:accounts`, a hash of the account of each job that is in a line or in `…:later`.

A job that is only in arq's set comes from a plain arq client, or from a version before these keys. Workers look for
such jobs, and give them a line of their own, under the account "".
"""

from __future__ import annotations

from typing import NamedTuple


class FairQueueKeys(NamedTuple):
    """The Redis keys beside arq's own key of a queue; `line` is a prefix."""

    turns: str
    later: str
    accounts: str
    line: str

    @classmethod
    def of(cls, queue: str) -> FairQueueKeys:
        return cls(f"{queue}:turns", f"{queue}:later", f"{queue}:accounts", f"{queue}:line:")


def others_wakeup_key(wakeup_key: str) -> str:
    """Returns the wake-up list of workers that have no room left for jobs of some accounts.

    It gets a token for each account that got a line. Tokens for every job go to `wakeup_key` itself, where workers wait
    that take the jobs of any account.
    """
    return f"{wakeup_key}:others"


# For scripts that define `turns`, `accounts` and `line`. Adds a job to the line of its account; an account that had no
# line gets the last turn. Returns whether it had none.
JOIN = """
local function give_last_turn(account)
    local last = redis.call('ZREVRANGE', turns, 0, 0, 'WITHSCORES')
    redis.call('ZADD', turns, (tonumber(last[2]) or 0) + 1, account)
end
local function join(id, account, due)
    redis.call('HSET', accounts, id, account)
    redis.call('ZADD', line .. account, due, id)
    if redis.call('ZSCORE', turns, account) then
        return false
    end
    give_last_turn(account)
    return true
end
"""
