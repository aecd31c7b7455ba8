"""Databases as earlier versions of Daguerre have left them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from service.schema.applied import record_version
from service.schema.definition import Schema
from tests.conftest import Servers

_numbers = itertools.count()
_FILL = """
insert into accounts (name, max_bytes, used_bytes, num_images, require_signature)
values ('shop', 1 << 30, 30, 3, true), ('blog', 1 << 30, 0, 0, false);
insert into api_keys (account_id, key_hash, hint) select id, sha256(name::bytea), name from accounts;
insert into images (id, account_id, state, size, sha256, tags, format, width, height, idempotency_key, error) values
    ('AAAAAAA', 1, 'ready', 10, '\\x01', '{a,b}', 'jpeg', 40, 30, 'key', null),
    ('PENDING', 1, 'pending', 10, '\\x02', '{a}', null, null, null, null, null),
    ('FAILEDx', 1, 'failed', 10, '\\x03', '{}', null, null, null, null, 'damaged-image');
insert into signing_keys (account_id, secret) values (1, 'secret');
insert into presets (account_id, name, parameters) values (1, 'thumb', 'width=300');
insert into removals (image_id) values ('REMOVED');
insert into renditions (image_id, digest, size) values ('AAAAAAA', 'x', 100);
insert into scrub (holder, held_until) values ('host:1', now());
insert into damaged_images (image_id, what) values ('AAAAAAA', 'truncated');
insert into storage (id) values ('0123456789abcdef')
"""


@dataclass(frozen=True)
class OtherDatabase:
    url: str
    connection: Any


@pytest.fixture
async def new(servers: Servers) -> AsyncIterator[OtherDatabase]:
    """Yields a database without tables."""
    name = f"schema_{next(_numbers)}"
    admin = await asyncpg.connect(servers.postgres.dsn)
    await admin.execute(f"create database {name}")
    connection = await asyncpg.connect(servers.postgres.dsn_of(name))
    yield OtherDatabase(servers.postgres.dsn_of(name), connection)
    await connection.close()
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


@pytest.fixture
async def older(new: OtherDatabase) -> OtherDatabase:
    """Returns a database with the tables before the first step, and rows in all of them."""
    first = Schema.load().steps[0]
    await new.connection.execute(first.text)
    await record_version(new.connection, first.version, first.text)
    await new.connection.execute(_FILL)
    return new
