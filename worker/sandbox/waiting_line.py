"""The questions that wait for a child: which one is next, and which child gets it.

A picture that computes cannot be interrupted. So an account gets at most `share` of the children, and a picture is
never put behind one of another account. Accounts whose pictures take long get at most `share` together: however many
they are, a child is left for quick pictures.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Collection, Sequence

from worker.sandbox.decoder import Child, Question

# An account is slow while a picture of it has taken this long, and for some time after.
_SLOW_S = 2.0
_SLOW_FOR_S = 60.0
_MAX_SLOW = 100


class SlowAccounts:
    """Accounts of which a picture took long lately; the latest 100 of them."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()

    def note(self, account: str, seconds: float) -> None:
        if seconds >= _SLOW_S:
            self._until[account] = time.monotonic() + _SLOW_FOR_S
            self._until.move_to_end(account)
            if len(self._until) > _MAX_SLOW:
                self._until.popitem(last=False)

    def current(self) -> Collection[str]:
        now = time.monotonic()
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        return self._until.keys()


class Line:
    """The accounts take turns, a question each."""

    def __init__(self, children: Sequence[Child], share: int) -> None:
        self._children = children
        self._share = share
        self._waiting: OrderedDict[str, deque[Question]] = OrderedDict()  # the account whose turn it is comes first
        self._slow = SlowAccounts()

    def add(self, question: Question) -> None:
        self._waiting.setdefault(question.account, deque()).append(question)

    def note(self, account: str, seconds: float) -> None:
        """A picture of the account took so long."""
        self._slow.note(account, seconds)

    def slow_accounts(self) -> Collection[str]:
        """Also those whose picture takes long at this time. Their children get a low priority."""
        for child in self._children:
            if child.account is not None:
                self._slow.note(child.account, child.working_s)
        slow = self._slow.current()
        for child in self._children:
            if child.account in slow:
                child.process.lower_priority()
        return slow

    def take(self, ahead: int) -> tuple[Question, Child] | None:
        """The next question and its child; None if no child may get one. A child has at most `ahead` questions."""
        if not self._waiting:
            return None
        free = [child for child in self._children if child.unanswered < ahead]
        if not free:
            return None
        slow = self.slow_accounts()
        holders = [child.account for child in self._children if child.account is not None]
        for account in self._waiting:
            held = sum(map(slow.__contains__, holders)) if account in slow else holders.count(account)
            admitted = {account, None} if held < self._share else {account}
            fitting = [child for child in free if child.account in admitted]
            if fitting:
                is_slow = account in slow
                child = min(fitting, key=lambda child: _rank(child, is_slow=is_slow))
                if is_slow:
                    child.process.lower_priority()
                return self._pop(account), child
        return None

    def clear(self) -> None:
        """Cancels all that wait."""
        for questions in self._waiting.values():
            for question in questions:
                question.finding.cancel()
        self._waiting.clear()

    def _pop(self, account: str) -> Question:
        questions = self._waiting[account]
        question = questions.popleft()
        if questions:
            self._waiting.move_to_end(account)
        else:
            del self._waiting[account]
        return question


def _rank(child: Child, *, is_slow: bool) -> tuple[bool, bool, int, bool]:
    """The least is the best child for a question of an account that is slow, or is not."""
    return child.is_resting, child.process.is_lowered != is_slow, child.unanswered, child.process.pid is None
