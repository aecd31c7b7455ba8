"""Processes of one machine: started, supervised, and ended with their parent."""


class StartError(Exception):
    """An error that the operator can fix. The message is one sentence that says how."""
