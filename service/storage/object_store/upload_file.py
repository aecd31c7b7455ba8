"""The local draft of an upload to an object store."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from service.ids import ImageId
from service.media_types import HEAD_BYTES, MIME_TYPES, sniff
from service.storage.files import SMALL_BYTES, ShortCalls, storage_errors
from service.storage.object_store.cache import create_draft


class ObjectUploadFile:
    """The `UploadFile` of an object store. The draft is not synced: what counts is the object.

    `token` is in the journal and in the object, so that the object can be recognised. `media_type` is that of the first
    bytes, for clients that get the object from the store. `content` is the whole body if it is small. `is_recorded` and
    `is_stored` say whether the journal and the store have the upload. The journal has it since `began_at`.
    """

    def __init__(self, image_id: ImageId, path: Path, short_calls: ShortCalls) -> None:
        self.image_id = image_id
        self.path = path
        self.token = secrets.token_hex(16)
        self.size = 0
        self.media_type = "application/octet-stream"
        self.content: bytes | None = None
        self.is_recorded = self.is_stored = False
        self.began_at = math.inf
        self._short_calls = short_calls
        self._file: BinaryIO | None = None

    async def write(self, chunks: Sequence[bytes]) -> None:
        with storage_errors():
            await self._short_calls.run(partial(self._write, chunks))

    async def finish(self, chunks: Sequence[bytes]) -> None:
        if not self.size and sum(map(len, chunks)) <= SMALL_BYTES:
            self.content = b"".join(chunks)
        with storage_errors():
            await self._short_calls.run(partial(self._finish, chunks))

    def _write(self, chunks: Sequence[bytes]) -> None:
        if self._file is None:
            self._file = create_draft(self.path)
        if not self.size and chunks:
            self.media_type = MIME_TYPES.get(sniff(chunks[0][:HEAD_BYTES]) or "", self.media_type)
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                rest = rest[self._file.write(rest) :]
            self.size += len(chunk)

    def _finish(self, chunks: Sequence[bytes]) -> None:
        self._write(chunks)
        assert self._file is not None  # noqa: S101 - _write opened it
        self._file.close()

    def move(self, path: Path) -> None:
        """Moves the draft to a new path. Blocks; raises OSError."""
        self.path.rename(path)
        self.path = path

    def abandon(self) -> None:
        if self._file is None:
            return
        with suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)
