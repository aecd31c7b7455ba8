"""Counters that the processes of one host share."""
