"""Starts and supervises the processes of one machine, and stops them with their parent."""


class StartError(Exception):
    """An error that the operator can fix. The message is one sentence that says how."""
