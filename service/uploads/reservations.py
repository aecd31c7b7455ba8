"""Bytes that are on their way, held against what their account may still store.

A body reserves its declared length, or grows its reservation as it arrives. As long as an account's reservations are
within a quarter of what was left some seconds ago, nobody is asked; beyond that, PostgreSQL is, about once a second for
an account that is not full. The quota itself is decided when rows are inserted.

Requests that repeat one another under an Idempotency-Key need no more room than one of them: those that do not fit
beside each other wait for their turn.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field

from service.accounts.accounts import Account, load_account
from service.database import Database
from service.errors import ServiceError
from service.ids import AccountId
from service.images.idempotency import find_used_keys
from service.images.models import IdempotencyKey
from service.shared_memory.arriving_bytes import ArrivingBytes

# Of what was left of the account some seconds ago: what others have stored since is not known.
_TRUSTED_PART = 4
_TRUST_S = 4.0
_TRUST_NEAR_S = 1.0
# So long a repeat waits for its turn, and so long until it looks whether another process has given bytes back.
_MAX_TURN_S = 10.0
_TURN_LOOK_S = 0.25


@dataclass(slots=True)
class _Sum:
    """Of one account: the bytes reserved, the bound for them that holds until then, and the bytes that went to rows.

    `turn` is held by the repeat that waits for `released`.
    """

    reserved: int = 0
    bound: int = 0
    trusted_until: float = 0.0
    stored: int = 0
    holders: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    released: asyncio.Event = field(default_factory=asyncio.Event)


class Reservation:
    """The bytes of one body, 0 at first."""

    __slots__ = ("_key", "_sum", "_sums", "account", "size")

    def __init__(self, account: Account, key: IdempotencyKey | None, sums: Reservations, own: _Sum) -> None:
        self.account = account
        self.size = 0
        self._key = key
        self._sums = sums
        self._sum = own

    async def cover(self, size: int) -> None:
        """Reserve as many bytes in all. Raises `quota-exceeded`; `busy` for a repeat that gets no turn; and
        `database-unavailable` if nothing is known.
        """
        more = size - self.size
        if more <= 0:
            return
        if self._is_trusted(more) or await self._fits(more):
            self._add(more)
        elif self._key is None:
            raise ServiceError("quota-exceeded")
        else:
            await self._cover_repeat(more, self._key)

    def hand_over(self) -> None:
        """The body is about to have a row, which the quota is decided on: its bytes are on their way no more."""
        self._sum.stored += self.size
        self._sum.bound -= self.size
        self.release()

    def release(self) -> None:
        if self.size:
            self._add(-self.size)

    def close(self) -> None:
        self.release()
        self._sums.forget(self.account.id, self._sum)

    def _add(self, more: int) -> None:
        self.size += more
        self._sum.reserved += more
        self._sums.shared.put(self.account.id, self._sum.reserved)
        if more < 0:
            self._sum.released.set()

    def _total(self, more: int) -> int:
        return self._sum.reserved + self._sums.shared.count_others(self.account.id) + more

    def _is_trusted(self, more: int) -> bool:
        return time.monotonic() < self._sum.trusted_until and self._total(more) <= self._sum.bound

    async def _fits(self, more: int) -> bool:
        stored = self._sum.stored
        try:
            account = await self._sums.load(self.account.id)
        except ServiceError:
            if self._total(more) <= self._sum.bound:  # the database is away; bodies go on meanwhile
                return True
            raise
        # Rows that were inserted during the look may or may not be in its answer: they refuse nobody now, and count
        # from now on.
        left, total = account.remaining_bytes - (self._sum.stored - stored), self._total(more)
        is_far = total <= left // _TRUSTED_PART
        self._sum.bound = left // _TRUSTED_PART if is_far else left
        self._sum.trusted_until = time.monotonic() + (_TRUST_S if is_far else _TRUST_NEAR_S)
        return total <= account.remaining_bytes

    async def _cover_repeat(self, more: int, key: IdempotencyKey) -> None:
        """As `cover`. What is stored under the key already may have filled the account: it is no reason to refuse."""
        try:
            async with asyncio.timeout(_MAX_TURN_S), self._sum.turn:
                while not await self._fits_repeat(more, key):
                    if self.size:  # it holds what others may wait for
                        raise ServiceError("busy")
                    self._sum.released.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_TURN_LOOK_S):
                            await self._sum.released.wait()
                self._add(more)
        except TimeoutError:
            raise ServiceError("busy") from None

    async def _fits_repeat(self, more: int, key: IdempotencyKey) -> bool:
        """Whether it fits beside what is on its way. Raises `quota-exceeded` if it would not fit alone."""
        account = await self._sums.load(self.account.id)
        size, room = self.size + more, account.remaining_bytes
        if size > room:
            room = max(account.max_bytes, account.used_bytes)
            if size > room or not await self._sums.is_taken(account.id, key):
                raise ServiceError("quota-exceeded")
        return self._total(more) <= room


class Reservations:
    """Of one process; `shared` has those of the other ones on this machine."""

    def __init__(self, database: Database, shared: ArrivingBytes) -> None:
        self.shared = shared
        self._database = database
        self._by_account: dict[AccountId, _Sum] = {}

    def open(self, account: Account, key: IdempotencyKey | None) -> Reservation:
        """A reservation of nothing yet, to be closed. `account` is at most some seconds old."""
        own = self._by_account.get(account.id)
        if own is None:
            own = self._by_account[account.id] = _Sum()
        now = time.monotonic()
        if now >= own.trusted_until:
            own.bound, own.trusted_until = account.remaining_bytes // _TRUSTED_PART, now + _TRUST_S
        own.holders += 1
        return Reservation(account, key, self, own)

    def forget(self, account_id: AccountId, own: _Sum) -> None:
        """One of the account's reservations is closed."""
        own.holders -= 1
        if not own.holders:
            del self._by_account[account_id]

    async def load(self, account_id: AccountId) -> Account:
        async with self._database.connection() as connection:
            return await load_account(connection, account_id)

    async def is_taken(self, account_id: AccountId, key: IdempotencyKey) -> bool:
        """Whether the key stands for an image."""
        async with self._database.connection() as connection:
            return bool(await find_used_keys(connection, [(account_id, key.text)]))
