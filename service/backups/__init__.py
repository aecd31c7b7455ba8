"""Backups: a dump of the database and copies of the files, in one folder."""


class BackupError(Exception):
    """A backup cannot be made or restored; the message says why."""
