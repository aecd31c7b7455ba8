"""PostgreSQL and Valkey from wheels, and every process of `daguerre up`."""


class EmbeddedError(Exception):
    """Something that the operator can mend; the message is one sentence that says what."""
