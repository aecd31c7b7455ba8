"""Limits: how often, how many at once, and how slowly."""
