"""Serving pictures at `/i/{id}`: finding them, caching them, and what clients may cost."""
