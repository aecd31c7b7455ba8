"""Clients of several accounts that upload, read, tag, search and delete, and remember every response."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import aiohttp

from tests.support.samples import jpeg

# An answer takes no longer, whatever is away.
_QUICKLY_S = 10
_PAUSE_S = 0.05


def unique_picture(body: bytes) -> bytes:
    """The JPEG with a comment that no other one has."""
    comment = os.urandom(12)
    return body[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + body[2:]


class Answer(NamedTuple):
    status: int
    headers: Any
    body: Any
    seconds: float


@dataclass
class Memory:
    """The responses that one client got. No other client changes its images."""

    stored: dict[str, bytes] = field(default_factory=dict)  # SHA-256 by id
    tags: dict[str, set[str]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    in_doubt: set[str] = field(default_factory=set)  # a delete that was not answered may have happened
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    succeeded_at: float = 0
    slowest_s: float = 0


@dataclass
class ChaosClient:
    base_url: str
    key: str
    memory: Memory = field(default_factory=Memory)
    chance: random.Random = field(default_factory=random.Random)

    async def run(self, *, until: Callable[[], bool]) -> None:
        while not until():
            # A new connection each time now and then, one that is kept in between.
            timeout = aiohttp.ClientTimeout(total=30)
            headers = {"X-Api-Key": self.key}
            async with aiohttp.ClientSession(self.base_url, timeout=timeout, headers=headers) as session:
                session._retry_connection = False  # a delete that is sent twice finds nothing the second time
                for _ in range(self.chance.randrange(1, 20)):
                    if until():
                        break
                    await self._do_something(session)

    async def _do_something(self, session: aiohttp.ClientSession) -> None:
        does: Sequence[Callable[[aiohttp.ClientSession], Awaitable[Answer]]] = [self._upload]
        if self.memory.stored:
            does = [self._upload, self._show, self._tag, self._search, self._delete]
        do = self.chance.choices(does, [5, 4, 2, 2, 2][: len(does)])[0]
        try:
            answer = await do(session)
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            self.memory.answers["none"] += 1
            await asyncio.sleep(_PAUSE_S)
            return
        self._judge(do.__name__.strip("_"), answer)
        if answer.status == 503:
            await asyncio.sleep(_PAUSE_S)

    def _judge(self, done: str, answer: Answer) -> None:
        code = answer.body.get("error", {}).get("code", "")
        self.memory.slowest_s = max(self.memory.slowest_s, answer.seconds)
        self.memory.answers[f"{answer.status} {code}".strip()] += 1
        if answer.status in (200, 202):
            self.memory.succeeded_at = time.monotonic()
        elif code == "quota-exceeded":
            assert done == "upload"
        elif answer.status == 503:
            if int(answer.headers.get("Retry-After", 0)) < 1:
                self.memory.wrong.append(f"{done}: 503 {code} without Retry-After")
        else:
            self.memory.wrong.append(f"{done}: {answer.status} {answer.body}")
        if answer.seconds > _QUICKLY_S + (10 if answer.status == 202 else 0):
            self.memory.wrong.append(f"{done}: {answer.status} after {answer.seconds:.1f} s")

    async def _upload(self, session: aiohttp.ClientSession) -> Answer:
        large = self.chance.random() < 0.1
        body = unique_picture(jpeg(2000, 1500, quality=90) if large else jpeg())
        tags = {f"t{self.chance.randrange(5)}"} if self.chance.random() < 0.5 else set()
        headers = {"Content-Type": "image/jpeg"}
        query = {"tags": ",".join(tags)}
        answer = await send(session.post("/v1/images", params=query, data=io.BytesIO(body), headers=headers))
        if answer.status in (200, 202):
            image_id = answer.body["response"]["id"]
            self.memory.stored[image_id] = hashlib.sha256(body).digest()
            self.memory.tags[image_id] = tags
        return answer

    async def _show(self, session: aiohttp.ClientSession) -> Answer:
        return await send(session.get(f"/v1/images/{self._one()}"))

    async def _tag(self, session: aiohttp.ClientSession) -> Answer:
        image_id, tag = self._one(), f"t{self.chance.randrange(5)}"
        answer = await send(session.put(f"/v1/images/{image_id}/tags", params={"tags": tag}))
        if answer.status == 200:
            self.memory.tags[image_id].add(tag)
        return answer

    async def _search(self, session: aiohttp.ClientSession) -> Answer:
        return await send(session.get("/v1/images/search", params={"tags": f"t{self.chance.randrange(5)}"}))

    async def _delete(self, session: aiohttp.ClientSession) -> Answer:
        image_id = self._one()
        self.memory.stored.pop(image_id)
        try:
            answer = await send(session.delete(f"/v1/images/{image_id}"))
        except BaseException:
            self.memory.in_doubt.add(image_id)
            raise
        if answer.status == 200:
            self.memory.deleted.add(image_id)
        else:  # a 503 may come after a commit whose answer was lost
            self.memory.in_doubt.add(image_id)
        return answer

    def _one(self) -> str:
        return self.chance.choice(list(self.memory.stored))


async def send(request: Any) -> Answer:
    began = time.monotonic()
    async with request as response:
        return Answer(response.status, response.headers, await response.json(), time.monotonic() - began)


@asynccontextmanager
async def mixed_load(base_url: str, keys: Sequence[str], *, clients: int) -> AsyncIterator[list[ChaosClient]]:
    """Clients at work for the length of the block; their last requests are answered before it ends."""
    stopping = False
    running = [ChaosClient(base_url, keys[number % len(keys)]) for number in range(clients)]
    async with asyncio.TaskGroup() as tasks:
        for client in running:
            tasks.create_task(client.run(until=lambda: stopping))
        try:
            yield running
        finally:
            stopping = True
