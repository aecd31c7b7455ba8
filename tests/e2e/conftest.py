"""Fixtures for tests of real processes."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from service.config.settings import Settings
from tests.conftest import Servers
from tests.support.stored_state import StoredState

_numbers = itertools.count()


@pytest.fixture
def stored(connection: Any, settings: Settings) -> StoredState:
    return StoredState(connection, settings)


@dataclass(frozen=True)
class OwnedDatabase:
    """An empty database of an ordinary role, as providers of PostgreSQL give one to their customers."""

    name: str
    role: str

    def url(self, servers: Servers) -> str:
        return f"postgresql://{self.role}@/{self.name}?host={servers.postgres.socket_folder}"


@pytest.fixture
async def owned_database(servers: Servers) -> AsyncIterator[OwnedDatabase]:
    number = next(_numbers)
    database = OwnedDatabase(f"owned_{number}", f"owner_{number}")
    admin = await asyncpg.connect(servers.postgres.dsn)
    await admin.execute(f"create role {database.role} login")
    await admin.execute(f"create database {database.name} owner {database.role}")
    await admin.execute(f"revoke all on database {database.name} from public")
    yield database
    await admin.execute(f"drop database {database.name} with (force)")
    await admin.execute(f"drop role {database.role}")
    await admin.close()
