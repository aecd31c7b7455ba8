"""Idempotency-Key: a request that is sent again under its key finds the image that it made before."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from service.errors import ServiceError

_VISIBLE_ASCII = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """What the client calls its request, and the SHA-256 of the picture's URL: None where the picture is the body."""

    text: str
    url_sha256: bytes | None = None

    @classmethod
    def parse(cls, text: str, url: str | None = None) -> IdempotencyKey:
        """Raises `invalid-idempotency-key`."""
        if _VISIBLE_ASCII.fullmatch(text) is None:
            raise ServiceError("invalid-idempotency-key")
        return cls(text, None if url is None else hashlib.sha256(url.encode()).digest())
