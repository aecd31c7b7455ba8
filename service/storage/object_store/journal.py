"""The journal of unfinished uploads: a row is inserted before the object is written, and deleted after the image's row
is committed. So an object that a crash left without an image is found without listing the bucket.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from service.database import Database
from service.ids import ImageId

# An id that is not free is refused here already, so that the store rarely has to.
_BEGIN = """
insert into unfinished_uploads (image_id, token)
select new.id, new.token from unnest($1::text[], $2::text[]) as new (id, token)
where not exists (select from images where images.id = new.id)
    and not exists (select from removals where removals.image_id = new.id)
order by new.id
on conflict do nothing
returning image_id
"""
_FINISH = "delete from unfinished_uploads where image_id = any($1) returning image_id"
_LIST_STALE = """
select image_id from unfinished_uploads
where started_at < now() - $1::float8 * interval '1 second' and image_id <> all($3)
order by started_at limit $2
"""
_TOKENS = "select image_id, token from unfinished_uploads where image_id = any($1)"


class Journal:
    """Every method raises `database-unavailable`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, tokens: Mapping[ImageId, str]) -> set[ImageId]:
        """Records uploads with their tokens, which their objects get as well. Returns those whose ids were free."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_BEGIN, list(tokens), list(tokens.values()))
        return {ImageId(row[0]) for row in rows}

    async def finish(self, image_ids: Collection[ImageId]) -> set[ImageId]:
        """Forgets uploads, and returns those that were recorded."""
        async with self._database.connection() as connection:
            return {ImageId(row[0]) for row in await connection.fetch(_FINISH, list(image_ids))}

    async def list_stale(self, age_s: float, limit: int, *, skip: Collection[str]) -> list[ImageId]:
        """Returns uploads that began longer ago, by the clock of PostgreSQL, oldest first."""
        async with self._database.connection() as connection:
            return [ImageId(row[0]) for row in await connection.fetch(_LIST_STALE, age_s, limit, list(skip))]

    async def find_tokens(self, image_ids: Sequence[ImageId]) -> dict[ImageId, str]:
        async with self._database.connection() as connection:
            return {ImageId(row[0]): row[1] for row in await connection.fetch(_TOKENS, image_ids)}
