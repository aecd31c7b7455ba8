"""Clients of several accounts that upload, read, tag, search and delete, and record their responses."""

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

# The maximum time until a response during any fault.
_MAX_RESPONSE_S = 10
_RETRY_INTERVAL_S = 0.05


def unique_picture(body: bytes) -> bytes:
    """Returns the JPEG with a random comment."""
    comment = os.urandom(12)
    return body[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + body[2:]


class Response(NamedTuple):
    status: int
    headers: Any
    body: Any
    seconds: float


@dataclass
class History:
    """The responses of one client. No other client changes its images."""

    stored: dict[str, bytes] = field(default_factory=dict)  # SHA-256 by id
    tags: dict[str, set[str]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    uncertain: set[str] = field(default_factory=set)  # deleted without a success response, so deleted or not
    responses: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    succeeded_at: float = 0
    slowest_s: float = 0


@dataclass
class ChaosClient:
    base_url: str
    key: str
    history: History = field(default_factory=History)
    rng: random.Random = field(default_factory=random.Random)

    async def run(self, *, until: Callable[[], bool]) -> None:
        while not until():
            # One connection for up to 19 requests.
            timeout = aiohttp.ClientTimeout(total=30)
            headers = {"X-Api-Key": self.key}
            async with aiohttp.ClientSession(self.base_url, timeout=timeout, headers=headers) as session:
                session._retry_connection = False  # a repeated delete would be a 404
                for _ in range(self.rng.randrange(1, 20)):
                    if until():
                        break
                    await self._send_random_request(session)

    async def _send_random_request(self, session: aiohttp.ClientSession) -> None:
        actions: Sequence[Callable[[aiohttp.ClientSession], Awaitable[Response]]] = [self._upload]
        if self.history.stored:
            actions = [self._upload, self._show, self._tag, self._search, self._delete]
        action = self.rng.choices(actions, [5, 4, 2, 2, 2][: len(actions)])[0]
        try:
            response = await action(session)
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            self.history.responses["none"] += 1
            await asyncio.sleep(_RETRY_INTERVAL_S)
            return
        self._check(action.__name__.strip("_"), response)
        if response.status == 503:
            await asyncio.sleep(_RETRY_INTERVAL_S)

    def _check(self, action: str, response: Response) -> None:
        code = response.body.get("error", {}).get("code", "")
        self.history.slowest_s = max(self.history.slowest_s, response.seconds)
        self.history.responses[f"{response.status} {code}".strip()] += 1
        if response.status in (200, 202):
            self.history.succeeded_at = time.monotonic()
        elif code == "quota-exceeded":
            assert action == "upload"
        elif response.status == 503:
            if int(response.headers.get("Retry-After", 0)) < 1:
                self.history.errors.append(f"{action}: 503 {code} without Retry-After")
        else:
            self.history.errors.append(f"{action}: {response.status} {response.body}")
        if response.seconds > _MAX_RESPONSE_S + (10 if response.status == 202 else 0):
            self.history.errors.append(f"{action}: {response.status} after {response.seconds:.1f} s")

    async def _upload(self, session: aiohttp.ClientSession) -> Response:
        large = self.rng.random() < 0.1
        body = unique_picture(jpeg(2000, 1500, quality=90) if large else jpeg())
        tags = {f"t{self.rng.randrange(5)}"} if self.rng.random() < 0.5 else set()
        headers = {"Content-Type": "image/jpeg"}
        query = {"tags": ",".join(tags)}
        response = await send(session.post("/v1/images", params=query, data=io.BytesIO(body), headers=headers))
        if response.status in (200, 202):
            image_id = response.body["response"]["id"]
            self.history.stored[image_id] = hashlib.sha256(body).digest()
            self.history.tags[image_id] = tags
        return response

    async def _show(self, session: aiohttp.ClientSession) -> Response:
        return await send(session.get(f"/v1/images/{self._random_image()}"))

    async def _tag(self, session: aiohttp.ClientSession) -> Response:
        image_id, tag = self._random_image(), f"t{self.rng.randrange(5)}"
        response = await send(session.put(f"/v1/images/{image_id}/tags", params={"tags": tag}))
        if response.status == 200:
            self.history.tags[image_id].add(tag)
        return response

    async def _search(self, session: aiohttp.ClientSession) -> Response:
        return await send(session.get("/v1/images/search", params={"tags": f"t{self.rng.randrange(5)}"}))

    async def _delete(self, session: aiohttp.ClientSession) -> Response:
        image_id = self._random_image()
        self.history.stored.pop(image_id)
        try:
            response = await send(session.delete(f"/v1/images/{image_id}"))
        except BaseException:
            self.history.uncertain.add(image_id)
            raise
        if response.status == 200:
            self.history.deleted.add(image_id)
        else:  # a 503 may follow a commit whose result was lost
            self.history.uncertain.add(image_id)
        return response

    def _random_image(self) -> str:
        return self.rng.choice(list(self.history.stored))


async def send(request: Any) -> Response:
    started = time.monotonic()
    async with request as received:
        return Response(received.status, received.headers, await received.json(), time.monotonic() - started)


@asynccontextmanager
async def mixed_load(base_url: str, keys: Sequence[str], *, clients: int) -> AsyncIterator[list[ChaosClient]]:
    """Runs clients within the block and yields them. It ends when they have the responses to their last requests."""
    stopping = False
    running = [ChaosClient(base_url, keys[number % len(keys)]) for number in range(clients)]
    async with asyncio.TaskGroup() as tasks:
        for client in running:
            tasks.create_task(client.run(until=lambda: stopping))
        try:
            yield running
        finally:
            stopping = True
