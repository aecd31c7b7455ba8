"""Counters that the API processes of one host share."""
