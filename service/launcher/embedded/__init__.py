"""PostgreSQL and Valkey from wheels, and every process of `daguerre up`."""

from service.launcher import StartError


class EmbeddedError(StartError):
    """Raised for what is about the servers and the data folder."""
