"""Chooses the next request and its decoder.

An account gets at most `share` of the decoders, and slow accounts get one share together (worker/fairness.py). No
request waits behind one of another account in the same decoder. So a decoder is always left for quick pictures.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Sequence

from worker.fairness import SlowAccounts, count_by_group, group_of
from worker.sandbox.decoder import Decoder, PendingRequest


class Dispatcher:
    """A queue with round robin: each turn of an account serves one request."""

    def __init__(self, decoders: Sequence[Decoder], share: int, slow: SlowAccounts) -> None:
        self._decoders = decoders
        self._share = share
        self._slow = slow
        self._queues: OrderedDict[str, deque[PendingRequest]] = OrderedDict()  # the account with the next turn first

    def add(self, pending: PendingRequest) -> None:
        self._queues.setdefault(pending.account, deque()).append(pending)

    def slow_accounts(self) -> Collection[str]:
        """Returns those of current pictures too, and lowers the priority of the decoders of slow accounts."""
        for decoder in self._decoders:
            if decoder.account is not None:
                self._slow.record(decoder.account, decoder.current_s)
        slow = self._slow.current()
        for decoder in self._decoders:
            if decoder.account in slow:
                decoder.process.lower_priority()
        return slow

    def take(self, prefetch: int) -> tuple[PendingRequest, Decoder] | None:
        """Returns the next request and its decoder, or None if no decoder may get one.

        A decoder has at most `prefetch` requests at a time.
        """
        if not self._queues:
            return None
        free = [decoder for decoder in self._decoders if decoder.in_flight < prefetch]
        if not free:
            return None
        slow = self.slow_accounts()
        busy = Counter(decoder.account for decoder in self._decoders if decoder.account is not None)
        busy_by_group = count_by_group(busy, slow)
        for account in self._queues:
            has_room = busy_by_group[group_of(account, slow)] < self._share
            accounts = {account, None} if has_room else {account}
            candidates = [decoder for decoder in free if decoder.account in accounts]
            if candidates:
                is_slow = account in slow
                decoder = min(candidates, key=lambda decoder: _rank(decoder, is_slow=is_slow))
                if is_slow:
                    decoder.process.lower_priority()
                return self._pop(account), decoder
        return None

    def clear(self) -> None:
        """Cancels all queued requests."""
        for queue in self._queues.values():
            for pending in queue:
                pending.result.cancel()
        self._queues.clear()

    def _pop(self, account: str) -> PendingRequest:
        queue = self._queues[account]
        pending = queue.popleft()
        if queue:
            self._queues.move_to_end(account)
        else:
            del self._queues[account]
        return pending


def _rank(decoder: Decoder, *, is_slow: bool) -> tuple[bool, bool, int, bool]:
    """The lowest rank is the best decoder for an account that is slow, or is not."""
    process = decoder.process
    return decoder.is_backing_off, process.has_low_priority != is_slow, decoder.in_flight, process.pid is None
