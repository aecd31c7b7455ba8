"""`daguerre up`: PostgreSQL and Valkey from wheels, and all processes of Daguerre on one machine."""

from service.launcher import StartError


class EmbeddedError(StartError):
    """An error of an embedded server or of the data folder."""
