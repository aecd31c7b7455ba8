"""Copies originals from one storage to another: for backups, and to move to another storage."""
