"""Originals and renditions in an object store (S3), with local copies."""
