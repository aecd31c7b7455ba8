"""Readers of the containers that more than one format has: structures only, never pixels."""
