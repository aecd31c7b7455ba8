"""Delivery of pictures at `/i/{id}`: finds them, caches them, and limits clients."""
