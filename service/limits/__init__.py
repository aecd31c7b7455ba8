"""Limits of rates, of concurrency, and of slow transfers."""
