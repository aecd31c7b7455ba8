"""Uploads: a request body becomes a file, a row and a probe job."""
