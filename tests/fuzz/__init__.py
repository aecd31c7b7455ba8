"""Fuzz tests: mutated pictures and malformed requests."""
