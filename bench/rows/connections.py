"""8,192 connections at once, with a mix of requests: none is reset, and what is refused gets a 503 with Retry-After.

After the last response, an upload, a read and a new rendition show how soon Daguerre serves as before.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import asyncpg
import uvloop

from bench import burst, turns
from bench.burst import Request, Response
from bench.photographs import photograph
from bench.rows.reads import upload_all
from bench.targets import Target, daguerre
from bench.wrk import BenchError
from service.accounts.accounts import create_account, create_key
from service.launcher.embedded import instance

CONNECTIONS = 8192
MAX_RECOVERY_MS = 1000
# The kinds of 16 requests in a row.
MIX = {
    "upload": 4,
    "metadata": 4,
    "rendition from memory": 4,
    "new rendition": 1,
    "search": 1,
    "tag": 1,
    "delete": 1,
}
_NORMAL_KINDS = ("upload", "metadata", "new rendition")
_QUERY = "width=300&format=jpeg&quality=80"
# Several, so that no account or address exceeds its share, which would be a 429.
_ACCOUNTS, _IMAGES, _MAX_BYTES = 8, 8, 100 << 30
_TIMEOUT_S = 120
_RETRY_INTERVAL_S = 0.02
# An API process reserves three files for each of its connections, and has little more than half of them.
_FILES_PER_CONNECTION, _OTHER_FILES = 2, 512


@dataclass(frozen=True, slots=True)
class Account:
    """Requests read, tag and render `images`, and delete `deletable`."""

    key: str
    images: list[str]
    deletable: list[str] = field(default_factory=list)


class Mix:
    """Makes requests of several accounts, in the shares of MIX. Each new rendition is another one."""

    def __init__(self, accounts: Sequence[Account], picture: bytes) -> None:
        self.accounts = accounts
        self.picture = picture
        self._numbers = itertools.count(1)

    def count_deletes(self, requests: int) -> int:
        """Returns how many deletable images each account needs for this number of requests."""
        return -(-requests * MIX["delete"] // sum(MIX.values()) // len(self.accounts))

    def make_all(self, count: int) -> list[Request]:
        kinds = [kind for kind, share in MIX.items() for _ in range(share)]
        requests = (
            self.make(kind, account, account.images[turn % len(account.images)])
            for turn in itertools.count()
            for account in self.accounts
            for kind in kinds
        )
        return list(itertools.islice(requests, count))

    def make(self, kind: str, account: Account, image_id: str) -> Request:
        number = next(self._numbers)
        method, path, body = "GET", f"/i/{image_id}?{_QUERY}", None
        match kind:
            case "upload":
                method, path, body = "POST", "/v1/images", self.picture
            case "metadata":
                path = f"/v1/images/{image_id}"
            case "new rendition":  # the background is part of the cache key but does not change a photograph
                path += f"&background={number:06x}"
            case "search":
                path = "/v1/images/search?tags=t1"
            case "tag":
                method, path = "PUT", f"/v1/images/{image_id}/tags?tags=t{number % 8}"
            case "delete":
                method, path = "DELETE", f"/v1/images/{account.deletable.pop()}"
        return Request.build(kind, method, path, key=account.key, body=body)


@dataclass(frozen=True, slots=True)
class _Turn:
    """`before` and `after` are the milliseconds until normal requests succeeded."""

    responses: Sequence[Response]
    before: Sequence[float]
    after: Sequence[float]


def run(
    folder: Path,
    *,
    rounds: int,
    seconds: float,  # noqa: ARG001 - until all have a response
    sizes: Sequence[str],  # noqa: ARG001 - one size
    count: int = CONNECTIONS,
) -> None:
    burst.raise_descriptor_limit(_FILES_PER_CONNECTION * count + _OTHER_FILES)
    picture = photograph("s")
    print(f"\n{count:,} connections at once, each with one request\n")
    print(
        f"| turn | responses | s until the first, the median, the last | ms of {', '.join(_NORMAL_KINDS)}: before"
        " | after |\n|---|---|---|---|---|"
    )
    with daguerre(folder) as target, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        keys = runner.run(_make_accounts(target))
        mix = Mix([Account(key, _upload(target, key, picture, _IMAGES)) for key in keys], picture)
        runner.run(_render(target, mix))
        measured = []
        for turn in range(1, rounds + 1):
            for account in mix.accounts:
                account.deletable[:] = _upload(target, account.key, picture, mix.count_deletes(count))
            measured.append(runner.run(_measure(target, mix, count)))
            print(_row(turn, measured[-1]))
            time.sleep(turns.SETTLE_S)
    _print_kinds([response for turn in measured for response in turn.responses])
    _print_verdicts(measured)


async def _make_accounts(target: Target) -> list[str]:
    """Returns the keys of new accounts."""
    running = instance.find(target.folder)
    assert running is not None
    connection = await asyncpg.connect(running.database_url)
    try:
        for number in range(_ACCOUNTS):
            await create_account(connection, f"account-{number}", _MAX_BYTES)
        return [await create_key(connection, f"account-{number}") for number in range(_ACCOUNTS)]
    finally:
        await connection.close()


def _upload(target: Target, key: str, picture: bytes, count: int) -> list[str]:
    return upload_all(replace(target, key=key), picture, count)


async def _render(target: Target, mix: Mix) -> None:
    """Makes the renditions that are served from memory later."""
    for account in mix.accounts:
        for image_id in account.images:
            await _time_success(target, mix.make("rendition from memory", account, image_id))


async def _measure(target: Target, mix: Mix, count: int) -> _Turn:
    requests = mix.make_all(count)
    before = await _time_normal(target, mix)
    responses = await burst.send_all(target.port, requests, timeout_s=_TIMEOUT_S)
    return _Turn(responses, before, await _time_normal(target, mix))


async def _time_normal(target: Target, mix: Mix) -> list[float]:
    """Returns the milliseconds until one request of each normal kind succeeded, one after the other."""
    account = mix.accounts[0]
    requests = [mix.make(kind, account, account.images[0]) for kind in _NORMAL_KINDS]
    return [await _time_success(target, request) for request in requests]


async def _time_success(target: Target, request: Request) -> float:
    """Repeats the request until it succeeds, and returns the milliseconds. Raises BenchError if that takes too long."""
    started = time.monotonic()
    while time.monotonic() - started < _TIMEOUT_S:
        [response] = await burst.send_all(target.port, [request], timeout_s=_TIMEOUT_S)
        if response.status == 200:
            return (time.monotonic() - started) * 1000
        await asyncio.sleep(_RETRY_INTERVAL_S)
    raise BenchError(f"the response to {request.kind} is still {response.status} {response.code}")


def _row(turn: int, measured: _Turn) -> str:
    times = sorted(response.seconds for response in measured.responses)
    percentiles = ", ".join(f"{times[index]:.1f}" for index in (0, len(times) // 2, -1))
    before, after = (", ".join(f"{ms:.0f}" for ms in values) for values in (measured.before, measured.after))
    return f"| {turn} | {_count(measured.responses)} | {percentiles} | {before} | {after} |"


def _count(responses: Iterable[Response]) -> str:
    """Returns e.g. "8000 x 200, 192 x 503 busy": the most frequent first."""
    counts = Counter(f"{response.status or 'no response:'} {response.code}".strip() for response in responses)
    return ", ".join(f"{number} x {name}" for name, number in counts.most_common())


def _print_kinds(responses: Sequence[Response]) -> None:
    print("\n| request | responses in all turns | slowest s |\n|---|---|---|")
    for kind in MIX:
        of_kind = [response for response in responses if response.kind == kind]
        print(f"| {kind} | {_count(of_kind)} | {max(response.seconds for response in of_kind):.1f} |")


def _print_verdicts(measured: Sequence[_Turn]) -> None:
    responses = [response for turn in measured for response in turn.responses]
    wrong = [response for response in responses if not response.is_success and not response.is_refusal]
    verdict = f"missed: {_count(wrong)}" if wrong else "reached"
    print(f"\nNeither success nor 503 with Retry-After: {len(wrong)} of {len(responses)}, target none: {verdict}")
    slowest_ms = max(sum(turn.after) for turn in measured)
    turns.print_maximum("Slowest recovery, ms until all three have succeeded", slowest_ms, MAX_RECOVERY_MS)
