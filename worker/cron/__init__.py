"""The periodic jobs of the worker."""
