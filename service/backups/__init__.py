"""Backups: a dump of the database and a copy of the files, in one folder."""


class BackupError(Exception):
    """A backup that cannot be made or restored; the message says why, to the operator."""
